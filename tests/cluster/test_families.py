"""Every family through both libraries: one tiny random model of the real architecture, one vLLM engine.

The engine is started on an export, so that it shows that vLLM loads one; transformers loads the same folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor
from transformers.utils import is_torchvision_available

from actors.engine import Engine, EngineOutput, EngineRequest
from learner.checkpoint import export_merged
from learner.model import SpeechPolicy, pack
from learner.publisher import Publisher
from speechsum.config import UNSUPPORTED_FAMILIES, EngineConfig, LoraConfig, ModelConfig
from speechsum.families import FAMILIES
from speechsum.lora import adapted_weights, whole_tensors
from speechsum.prompting import PromptBuilder
from speechsum.types import AudioRef, Completion, PushMode, SamplingParams, TrainingSample
from tests.tiny import noise
from tests.tiny_families import BUILDERS

SMALL = EngineConfig(threads=1, max_model_len=256, max_num_seqs=8, kv_cache_gb=0.05)
LORA = LoraConfig(rank=2, alpha=4)
SCALE = LORA.alpha / LORA.rank
CLIPS = (noise(1.013, 1), noise(2.6, 2), noise(0.4001, 3))
SAMPLING = SamplingParams(n=2, temperature=0.7, max_tokens=6, seed=5)
LOGITS_DIVISOR = {"granite_speech": 4.0}  # transformers 5.19 leaves it out of its own class; vLLM does not
AGREES = {"atol": 1e-3, "rtol": 0}


class Student:
    """A checkpoint as the learner holds it, its adapter moved away from zero by `seed`."""

    def __init__(self, name: str, path: Path, seed: int) -> None:
        self.family = FAMILIES[name]
        self.path = path
        self.model = self.family.load(path, "float32", "eager")
        torch.manual_seed(seed)
        self.policy = SpeechPolicy(self.model, self.family, LORA, train_projector=True).train()
        self.builder = PromptBuilder.load(path, self.family)
        with torch.no_grad():
            for name, parameter in self.policy.trainable().items():
                parameter.add_(torch.randn_like(parameter) * (0.1 if ".lora_" in name else 0.02))
        extractor = AutoFeatureExtractor.from_pretrained(path)
        self.states = self.family.encode(self.model, extractor, CLIPS)

    def adapter(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in self.policy.trainable().items()}

    def logprobs(self, outputs: list[EngineOutput]) -> np.ndarray:
        """Of the completions in `outputs`, one output for each clip."""
        samples = [TrainingSample(str(i), AudioRef(str(i)), out.prompt_ids, _completions(out))
                   for i, out in enumerate(outputs)]  # fmt: skip
        rows = pack(samples, self.builder.end_id)
        nobody = torch.zeros(len(rows.targets), 0, dtype=torch.long)
        with torch.no_grad():
            found, _, _ = self.policy(
                rows, torch.cat(self.states), self.builder.audio_id, nobody, SAMPLING.temperature, 64
            )
        return found.numpy()


def _completions(output: EngineOutput) -> tuple[Completion, ...]:
    return tuple(Completion(s.token_ids, s.logprobs, 0.0, 0) for s in output.samples)


def listen(engine: Engine, student: Student) -> list[EngineOutput]:
    ids = student.builder.request_ids("summarize what is said")
    return [o for o in engine.generate([EngineRequest(ids, clip, seed=i) for i, clip in enumerate(CLIPS)], SAMPLING)
            if isinstance(o, EngineOutput)]  # fmt: skip


def heard(outputs: list[EngineOutput]) -> np.ndarray:
    return np.concatenate([s.logprobs for o in outputs for s in o.samples])


def by_transformers(name: str, path: Path, output: EngineOutput) -> np.ndarray:
    """Log-probs of the first clip's completions by the forward of transformers' own class, nothing of ours in it."""
    family = FAMILIES[name]
    model, extractor = family.load(path, "float32"), AutoFeatureExtractor.from_pretrained(path)
    found = []
    for sample in output.samples:
        ids = torch.from_numpy(np.concatenate([output.prompt_ids, sample.token_ids])).long()[None]
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **recording(name, extractor)).logits[0]
        tempered = logits[len(output.prompt_ids) - 1 : -1] / (SAMPLING.temperature * LOGITS_DIVISOR.get(name, 1.0))
        found.append(tempered.log_softmax(-1).gather(-1, ids[0, len(output.prompt_ids) :, None])[:, 0].numpy())
    return np.concatenate(found)


def recording(name: str, extractor: Any) -> dict[str, torch.Tensor]:
    """The first clip as each model's own processor hands it over."""
    if name == "granite_speech":
        return {"input_features": extractor(CLIPS[0]).input_features}
    clip = np.pad(CLIPS[0], (0, -len(CLIPS[0]) % 160)) if name == "qwen3_omni" else CLIPS[0]
    padding = "longest" if name == "qwen3_omni" else "max_length"
    out = extractor(clip, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True, padding=padding)
    mask = "input_features_mask" if name == "audio_flamingo3" else "feature_attention_mask"
    return {"input_features": out.input_features, mask: out.attention_mask}


def weights(engine: Engine) -> dict[str, str]:
    """vLLM's own checksum of every tensor that it serves."""
    return engine._llm.collective_rpc("compute_weight_checksums")[0]


@pytest.fixture
def _vision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in where torchvision is missing: the omni models' files import it, and no recording comes near it."""
    if is_torchvision_available():
        return
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.v2",
                 "torchvision.transforms.v2.functional"):  # fmt: skip
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], leaf, module)


@pytest.mark.slow
@pytest.mark.usefixtures("_vision")
@pytest.mark.parametrize("name", BUILDERS)
def test_family_in_both_libraries(name: str, tmp_path: Path) -> None:
    base = Student(name, BUILDERS[name](tmp_path / "base"), seed=1)
    _check_parts(base)
    exported = export_merged(base.path, base.adapter(), SCALE, tmp_path / "export")
    student = Student(name, exported, seed=2)
    engine = Engine(exported, SMALL, dtype="float32", receives="object_store")
    try:
        outputs = listen(engine, student)
        _check_prompts(base, outputs)
        np.testing.assert_allclose(heard(outputs), base.logprobs(outputs), **AGREES)
        np.testing.assert_allclose(heard(outputs[:1]), by_transformers(name, exported, outputs[0]), **AGREES)
        _check_pushes(engine, student)
    finally:
        engine.close()
    ROWS[name] = row(base)


def _check_parts(student: Student) -> None:
    """LoRA in the decoder alone, every name that training touches is one on disk, and of the encoder nothing moves."""
    on_disk = {name for name, _ in Publisher(student.path, SCALE, torch.float32).base()}
    adapted, whole = adapted_weights(student.adapter()), whole_tensors(student.adapter())
    assert {*adapted, *whole} <= on_disk
    assert {name.split(".")[-2] for name in adapted} >= {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert len(whole) == len(list(student.policy.projector.parameters()))
    projector = {id(p) for p in student.policy.projector.parameters()}
    encoder = student.model.get_submodule(student.family.encoder).parameters()
    assert not any(p.requires_grad for p in encoder if id(p) not in projector)


def _check_prompts(student: Student, outputs: list[EngineOutput]) -> None:
    """The engine expands our request to as many tokens as the learner has states."""
    request = student.builder.request_ids("summarize what is said")
    for states, output in zip(student.states, outputs, strict=True):
        assert output.prompt_ids.tolist() == student.builder.expand(request, len(states)).tolist()


def _check_pushes(engine: Engine, student: Student) -> None:
    """An adapter and the same adapter merged leave the same bits, and a push of the export's own brings its back."""
    publisher = Publisher(student.path, SCALE, torch.float32)
    untouched = weights(engine)
    engine.update_weights(publisher.payload(1, PushMode.ADAPTER, student.adapter()))
    adapted = weights(engine)
    outputs = listen(engine, student)
    np.testing.assert_allclose(heard(outputs), student.logprobs(outputs), **AGREES)
    engine.update_weights(publisher.payload(2, PushMode.FULL, {}))
    assert weights(engine) == untouched
    engine.update_weights(publisher.payload(3, PushMode.FULL, student.adapter()))
    assert weights(engine) == adapted != untouched


# --- the tables ------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
HEAD = (
    "`model.family`",
    "model class",
    "tokens per second",
    "LoRA on",
    "projector",
    "prompt ids, log-probs, pushes, export",
)
ROWS: dict[str, tuple[str, ...]] = {}


def row(student: Student) -> tuple[str, ...]:
    """What the checks above, all passed, say of a family."""
    family = student.family
    leaves = list(dict.fromkeys(n.split(".")[-2].removesuffix("_proj") for n in adapted_weights(student.adapter())))
    return (f"`{family.name}`", f"`{family.model_class}`", f"{family.tokens_per_s:g}", ", ".join(leaves),
            f"`{family.projector.rpartition('.')[2]}`", "agree")  # fmt: skip


def markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = lines
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ("---",) * len(head), *rest))


def tables() -> dict[Path, str]:
    """The families that passed and those that are refused, in full and, for the README, by name and result."""
    refused = [(f"`{name}`", "", "", "", "", f"refused: {why}") for name, why in UNSUPPORTED_FAMILIES.items()]
    lines = [HEAD, *(ROWS[name] for name in BUILDERS), *refused]
    short = [(line[0], line[1], line[-1].partition(":")[0]) for line in lines[1:]]
    return {
        ROOT / "docs" / "families.md": markdown(lines),
        ROOT / "README.md": markdown([(HEAD[0], HEAD[1], HEAD[-1]), *short]),
    }


@pytest.mark.slow
def test_the_tables_are_current() -> None:
    """After a change of the families: WRITE_TABLES=1 pytest tests/cluster/test_families.py."""
    if ROWS.keys() != BUILDERS.keys():
        pytest.skip("not every family ran, or passed")
    for path, table in tables().items():
        before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
        found, _, after = rest.partition(END)
        if os.environ.get("WRITE_TABLES"):
            path.write_text(before + BEGIN + table + END + after, encoding="utf-8")
        else:
            assert found == table


def test_every_family_is_tested_or_refused() -> None:
    assert FAMILIES.keys() == BUILDERS.keys() == set(get_args(ModelConfig.model_fields["family"].annotation))
    assert not FAMILIES.keys() & UNSUPPORTED_FAMILIES.keys()
