"""Where figures go besides the screen and `metrics.jsonl`: Weights & Biases and Ray's metrics.

Both are conveniences. Neither may stop a run that costs real money, so the first failure of wandb is told once and
ends its use, and Ray is only spoken to where it is up.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.run_folder import RunFolder
from speechsum.audio import SAMPLE_RATE, load_audio
from speechsum.config import RunConfig
from speechsum.errors import UserError
from speechsum.types import AudioRef

if TYPE_CHECKING:
    from actors.published import Published

INIT_TIMEOUT_S = 30
COLUMNS = ["stage", "step", "prompt", "audio", "instruction", "summary", "reference", "reward", "breakdown", "version"]


@dataclass(frozen=True, slots=True)
class SampleRow:
    """A completion worth looking at. Controller -> watch. `reward` is None where the judge failed.

    `audio_path` is `AudioRef.key`: a file, or a manifest and the row that holds the bytes.
    """

    prompt_id: str
    audio_path: str
    instruction: str
    text: str
    reference: str
    reward: float | None
    breakdown: dict[str, float] = field(default_factory=dict)
    policy_version: int = 0


class WandbTracker:
    """One wandb run; offline it writes below the run folder and asks nobody anything."""

    def __init__(self, folder: RunFolder, config: RunConfig, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._run: Any = None
        self._begun = config.watch.wandb != "disabled"
        if self._begun:
            with self._told_once():
                self._run = _init(folder, config)

    def log(self, figures: dict[str, float], stage: str, step: int, overall: int) -> None:
        """Log a step's figures against the step counted over all stages."""
        if self._run is not None:
            with self._told_once():
                self._run.log({**figures, "step": overall, "stage_step": step, "stage": stage})

    def samples(self, rows: Sequence[SampleRow], stage: str, step: int) -> None:
        """Log completions as a table in which the audio can be played."""
        if self._run is not None:
            with self._told_once():
                import wandb

                table = wandb.Table(columns=COLUMNS)
                for row in rows:
                    table.add_data(*_cells(row, stage, step))
                self._run.log({"samples": table})

    def close(self) -> None:
        """Finish the run and end wandb's own service process, also where wandb failed on the way."""
        if self._begun:
            self._begun = False
            with self._told_once():
                import wandb

                try:
                    if self._run is not None:
                        self._run.finish()
                finally:
                    wandb.teardown()

    @contextlib.contextmanager
    def _told_once(self) -> Iterator[None]:
        """The boundary behind which wandb may fail as it likes: a warning, then no more of it."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except Exception as error:
            self._run = None
            lines = str(error).splitlines() or [""]
            self._warn(f"wandb is off from here on ({type(error).__name__}: {lines[0]}); training goes on")


def _init(folder: RunFolder, config: RunConfig) -> Any:
    import wandb

    # Tables and their audio wait for `wandb sync` in a folder that has no other setting; left alone it is in the home.
    os.environ.setdefault("WANDB_DATA_DIR", str(folder.path / "wandb" / "data"))
    settings = wandb.Settings(
        silent=True, console="off", disable_git=True, disable_code=True, save_code=False, init_timeout=INIT_TIMEOUT_S
    )
    run = wandb.init(
        project=config.watch.project,
        name=config.name,
        id=_run_id(folder.wandb_id),
        resume="allow" if config.watch.wandb == "online" else None,
        dir=folder.path,
        mode=config.watch.wandb,
        config=config.model_dump(mode="json"),
        settings=settings,
    )
    run.define_metric("*", step_metric="step")
    return run


def _run_id(path: Path) -> str:
    """The run's id, made on the first start, so that what follows a resume joins the same curves."""
    if not path.exists():
        path.write_text(secrets.token_hex(8), encoding="ascii")
    return path.read_text(encoding="ascii").strip()


def _cells(row: SampleRow, stage: str, step: int) -> list[Any]:
    breakdown = " ".join(f"{name}={value:.3g}" for name, value in row.breakdown.items())
    audio = _playable(row.audio_path)
    asked = [row.instruction, row.text, row.reference]
    return [stage, step, row.prompt_id, audio, *asked, row.reward, breakdown, row.policy_version]


def _playable(audio_path: str) -> Any:
    """A `wandb.Audio` of a file, or of the bytes in a manifest's row; None where there is nothing left to play."""
    import wandb

    if Path(audio_path).is_file():
        return wandb.Audio(audio_path)
    manifest, _, row = audio_path.rpartition("#")
    if not row.isdigit():
        return None
    try:
        return wandb.Audio(load_audio(AudioRef(manifest, int(row))), sample_rate=SAMPLE_RATE)
    except UserError:
        return None


class RayTracker:
    """Ray's own metrics, which its dashboard offers to Prometheus. Does nothing while Ray is not initialised.

    `run` is the label that tells the figures of one run from another's on the same cluster.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._published: Published | None = None
        self._of_step: set[str] = set()

    def step(self, figures: Mapping[str, float]) -> None:
        """The figures of a step. What the step before had and this one has not is told no more."""
        if self._tell(figures) and self._published:
            self._published.forget(self._of_step - figures.keys())
            self._of_step = set(figures)

    def live(self, figures: Mapping[str, float]) -> None:
        """How things stand at this moment."""
        self._tell(figures)

    def close(self) -> None:
        """Tell nothing any more. May be called twice."""
        if self._published:
            self._published.close()

    def _tell(self, figures: Mapping[str, float]) -> bool:
        ray = sys.modules.get("ray")  # never imported for this: where nobody has, there is no Ray to tell
        if ray is None or not ray.is_initialized():
            return False
        if self._published is None:
            from actors.published import Published

            self._published = Published({"run": self._run})
        self._published.tell(figures)
        return True
