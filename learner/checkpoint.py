"""Checkpoints that cannot be half written, and the export that other programs load.

Safetensors and JSON only: nothing here is unpickled, and tensors are stored in full, so a run may resume on another
number of ranks. A folder is written under a temporary name, every file flushed to disk, `MANIFEST.json` (sizes and
SHA-256) last, then renamed. Only a folder whose manifest verifies is ever loaded. No state of a random generator is
among them: order, sampling and augmentation are drawn from the seed and the place in the run, which are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learner.publisher import merged_tensor
from speechsum.errors import RunError, UserError, last_line
from speechsum.lora import pair_names

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ADAPTER = "adapter.safetensors"
OPTIMIZER = "optimizer.safetensors"
REFERENCE = "reference.safetensors"
STATE = "state.json"
MANIFEST = "MANIFEST.json"


def save_checkpoint(
    folder: Path, number: int, tensors: Mapping[str, Tensor], moments: Mapping[str, Tensor], state: dict[str, Any],
    keep: int, reference: Mapping[str, Tensor] | None = None,
) -> Path:  # fmt: skip
    """Write `folder/step_<number>` and remove all but the newest `keep`. Returns the new folder.

    `reference` are a stage's first weights, where its loss reads them. Raises `RunError` where the disk does not take
    it, and leaves nothing behind there.
    """
    from safetensors import SafetensorError

    final = folder / f"step_{number:06d}"
    temporary = folder / f"tmp_step_{number:06d}"
    for left in folder.glob("tmp_step_*"):  # by a process that was killed while it saved
        shutil.rmtree(left, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write(temporary, tensors, moments, state, reference or {})
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        size_gb = sum(t.nbytes for part in (tensors, moments, reference or {}) for t in part.values()) / 1e9
        raise RunError(
            f"{folder} did not take a checkpoint of {size_gb:.2f} GB ({last_line(error)}); "
            "free space there, then go on with --resume"
        ) from error
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _flush(folder)
    for old in sorted(folder.glob("step_??????"))[:-keep]:
        shutil.rmtree(old)
    return final


def _write(
    folder: Path, tensors: Mapping[str, Tensor], moments: Mapping[str, Tensor], state: dict[str, Any],
    reference: Mapping[str, Tensor],
) -> None:  # fmt: skip
    """A checkpoint's files, the manifest last, all of them flushed to disk."""
    from safetensors.torch import save_file

    save_file(dict(tensors), folder / ADAPTER)
    save_file(dict(moments), folder / OPTIMIZER)
    if reference:
        save_file(dict(reference), folder / REFERENCE)
    (folder / STATE).write_text(json.dumps(state, indent=1))
    files = {path.name: _fingerprint(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"format": 1, "files": files}, indent=1))
    for path in (*folder.iterdir(), folder):
        _flush(path)


def newest_checkpoint(folder: Path, tell: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies, or None when there never was one. A damaged one is set aside as `.corrupt`.

    Raises `UserError` when there are checkpoints and none of them is whole: a resume never starts from scratch
    behind one's back.
    """
    found = sorted(folder.glob("step_??????"), reverse=True)
    for path in found:
        problem = verify(path)
        if problem is None:
            return path
        aside = path.with_suffix(".corrupt")
        shutil.rmtree(aside, ignore_errors=True)  # the same step may have been damaged before
        path.rename(aside)
        tell(f"{problem}; set aside as {aside.name}")
    if found or list(folder.glob("*.corrupt")):
        raise UserError(
            f"every checkpoint in {folder} is damaged; start anew with --overwrite, or restore one from a copy"
        )
    return None


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        complete = {ADAPTER, OPTIMIZER, STATE} <= files.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        return f"{path} has no readable {MANIFEST}"
    for name, fingerprint in files.items():
        if not (path / name).is_file() or _fingerprint(path / name) != fingerprint:
            return f"{path / name} is missing or differs from its manifest"
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Adapter, optimizer moments and state of a verified checkpoint."""
    from safetensors.torch import load_file

    return load_file(path / ADAPTER), load_file(path / OPTIMIZER), load_state(path)


def load_state(path: Path) -> dict[str, Any]:
    """The state of a verified checkpoint: the run's position, not the learner's."""
    state: dict[str, Any] = json.loads((path / STATE).read_text())
    return state


def load_reference(path: Path) -> dict[str, Tensor]:
    """The reference of a verified checkpoint; empty where its stage had none."""
    from safetensors.torch import load_file

    return load_file(path / REFERENCE) if (path / REFERENCE).is_file() else {}


def export_merged(base: Path, tensors: Mapping[str, Tensor], scale: float, out: Path) -> Path:
    """A plain Hugging Face checkpoint: the base with projector replaced and LoRA merged, for any program to load.

    The folder appears whole or not at all. Raises `UserError` when the adapter names weights the base lacks.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(base, temporary, ignore=shutil.ignore_patterns("*.safetensors"))
    unused = set(tensors)
    for shard in sorted(base.glob("*.safetensors")):
        with safe_open(shard, "pt") as source:
            weights = {n: source.get_tensor(n) for n in source.keys()}  # noqa: SIM118
        merged = {n: merged_tensor(w, n, tensors, scale, w.dtype) for n, w in weights.items()}
        save_file(merged, temporary / shard.name, metadata={"format": "pt"})
        unused -= {used for n in merged for used in (n, *pair_names(n))}
    if unused:
        shutil.rmtree(temporary)
        raise UserError(
            f"{base} has no weight for the adapter's {min(unused)!r}; export onto the model it was trained on"
        )
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)
    return out


def export_adapter(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Projector and LoRA alone as one safetensors file in `dtype`, small enough to ship."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({n: t.to(dtype).contiguous() for n, t in tensors.items()}, temporary)
    temporary.rename(path)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _flush(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
