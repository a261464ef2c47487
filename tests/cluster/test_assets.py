"""From a recipe's names to files: everything wrong with the inputs is said at once, before a model loads."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from cluster import assets
from cluster.run_folder import RunFolder
from cluster.screen import screen_for
from cluster.summarize import summarize
from cluster.train import make_plan
from speechsum import cli
from speechsum.config import RunConfig, parse
from speechsum.errors import UserError
from speechsum.families import FAMILIES
from speechsum.pairs import Pair
from speechsum.prompting import PromptBuilder
from tests.tiny import recording, tiny_tokenizer


def row(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A row that is fine but for `changes`."""
    recording(folder / f"{name}.wav", 0.5, seed=1)
    return {
        "id": name, "audio": f"{name}.wav", "instruction": "sum up", "transcript": "anna must go",
        "reference": "anna goes", **changes,
    }  # fmt: skip


def manifest(folder: Path, name: str, *rows: dict[str, Any]) -> str:
    path = folder / name
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return str(path)


def config(checkpoint: Path, train: str, held_out: str, **model: Any) -> RunConfig:
    tree = {
        "name": "tiny",
        "model": {"path": str(checkpoint), "max_audio_s": 4, "max_prompt_tokens": 120, **model},
        "data": {"train": train, "eval": held_out},
        "rollout": {"engine": {"max_model_len": 256}},
        "judge": {"kind": "lexical"},
        "watch": {"wandb": "disabled"},
        "stage": [{"name": "sft", "steps": 1, "loss": {"kind": "sft"}},
                  {"name": "grpo", "steps": 1, "group_size": 2, "loss": {"kind": "grpo"}}],
    }  # fmt: skip
    return parse(tree, "test")


def refusal(wanted: RunConfig, folder: Path) -> str:
    """What a run with this recipe says before it starts anything."""
    with closing(screen_for(Console(file=io.StringIO()))) as screen, pytest.raises(UserError) as caught:
        make_plan(wanted, RunFolder(folder / "run"), screen, resume=False)
    return str(caught.value)


@pytest.fixture
def good(tmp_path: Path) -> str:
    return manifest(tmp_path, "good.jsonl", row(tmp_path, "good"))


def test_both_manifests_are_told_about_at_once(tiny_path: Path, tmp_path: Path) -> None:
    train = manifest(
        tmp_path, "train.jsonl", row(tmp_path, "a", reference=""), row(tmp_path, "b", transcript=" "),
        row(tmp_path, "c", instruction="word " * 200), row(tmp_path, "d", audio="gone.wav"),
        row(tmp_path, "e", instruction="<sound> again"),
    )  # fmt: skip
    recording(tmp_path / "long.wav", 4.5, seed=2)
    held_out = manifest(tmp_path, "eval.jsonl", row(tmp_path, "f", audio="long.wav"), row(tmp_path, "g", transcript=""))
    told = refusal(config(tiny_path, train, held_out), tmp_path).splitlines()
    expected = [
        ("train.jsonl", "5 problem(s)"), ("line 1", "reference"), ("line 2", "transcript"),
        ("line 3", "max_prompt_tokens"), ("line 4", "gone.wav"), ("line 5", "control token"),
        ("eval.jsonl", "2 problem(s)"), ("line 1", "more than the 4 s"), ("line 2", "transcript"),
    ]  # fmt: skip
    assert len(told) == len(expected)
    assert all(all(word in line for word in words) for line, words in zip(told, expected, strict=True))


def test_a_longer_recording_than_the_model_takes_is_not_a_matter_of_the_recipe(
    tiny_path: Path, tmp_path: Path, good: str
) -> None:
    wanted = config(tiny_path, good, good, max_audio_s=6, max_prompt_tokens=200)
    assert "takes 4; lower it" in refusal(wanted, tmp_path)


def test_tokenizer_and_model_that_do_not_match(tiny_path: Path, tmp_path: Path, good: str) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(tiny_path, foreign)
    told = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps(told | {"audio_token_id": 3}))
    assert "do not match" in refusal(config(foreign, good, good), tmp_path)


def test_a_run_folder_is_no_checkpoint_but_holds_one(tiny_path: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_path, tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text('{"name": "demo"}')
    with pytest.raises(UserError, match=f"did you mean {tmp_path}/run/model"):
        assets.checkpoint_folder(str(tmp_path / "run"))
    assert assets.family_of(assets.checkpoint_folder(str(tmp_path / "run" / "model"))).name == "audio_flamingo3"


@pytest.mark.parametrize(
    ("config_json", "says"),
    [
        (None, "cannot read"),
        ("{", "not JSON"),
        ("[]", "no checkpoint"),
        ('{"model_type": "x", "auto_map": {}}', "code of its own"),
    ],
)
def test_folders_that_are_no_checkpoints(config_json: str | None, says: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    if config_json is not None:
        (tmp_path / "config.json").write_text(config_json)
    with pytest.raises(UserError, match=says):
        assets.checkpoint_folder(str(tmp_path))


# --- the rows of an evaluation -------------------------------------------------------------------------------------


def test_the_starter_alone_brings_a_recogniser(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "whisper-tiny.en").mkdir()
    (tmp_path / "whisper-tiny.en" / "config.json").write_text("{}")  # built before
    starter = tmp_path / "starter"
    starter.mkdir()
    sizes = {"audio_config": {"hidden_size": 384}, "text_config": {"hidden_size": 576}}
    (starter / "config.json").write_text(json.dumps({"model_type": "audioflamingo3", **sizes}))
    found = [assets.recogniser_checkpoint(path, model, print, tmp_path)
             for path, model in (("", starter), ("starter", tiny_path))]  # fmt: skip
    assert found == [tmp_path / "whisper-tiny.en"] * 2
    with pytest.raises(UserError, match=r"brings no recogniser; set eval\.recogniser"):
        assets.recogniser_checkpoint("", tiny_path, print, tmp_path)


def test_the_base_is_what_training_begins_with(tiny_path: Path, good: str, tmp_path: Path) -> None:
    assert assets.base_checkpoint(config(tiny_path, good, good), print) == tiny_path
    with pytest.raises(UserError, match="export them merged"):
        assets.base_checkpoint(config(tiny_path, good, good, adapter="x.safetensors"), print)


def test_the_base_is_merged_at_the_scale_that_training_has(
    good: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "starter").mkdir()
    (tmp_path / "starter" / "config.json").write_text("{}")
    save_file({"q.weight": torch.zeros(1, 1)}, tmp_path / "starter" / "model.safetensors")
    save_file({"q.lora_A": torch.ones(1, 1), "q.lora_B": torch.ones(1, 1)}, tmp_path / "one.safetensors")
    monkeypatch.setattr(assets.starter, "default_cache", lambda: tmp_path)
    adapter = str(tmp_path / "one.safetensors")
    weights = []
    for alpha in (32, 8):
        wanted = config(Path("starter"), good, good, adapter=adapter, lora={"rank": 16, "alpha": alpha})
        for _ in range(2):  # the second finds it there
            folder = assets.base_checkpoint(wanted, print)
        weights.append(float(load_file(folder / "model.safetensors")["q.weight"]))
    assert weights == [2.0, 0.5]


def test_the_kinds_of_request_that_training_asks(tiny_path: Path, tmp_path: Path) -> None:
    train = manifest(
        tmp_path, "kinds.jsonl", row(tmp_path, "a", instruction="Give me bullets."), row(tmp_path, "b", request="task"),
        row(tmp_path, "c"),
    )  # fmt: skip
    assert assets.trained_kinds(config(tiny_path, train, train)) == {"bullets", "task", "free"}
    assert assets.trained_kinds(config(tiny_path, "starter", train)) == {"sentence", "bullets", "task", "keywords"}


def test_held_out_speech_may_ask_what_training_never_does(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, tuple[str, ...]]] = []

    def spoken(folder: Path, *, held_out: bool, kinds: tuple[str, ...], **others: Any) -> Path:
        asked.append((held_out, kinds))
        return Path(manifest(tmp_path, "spoken.jsonl", row(tmp_path, "a")))

    monkeypatch.setattr(assets, "synthesize", spoken)
    wanted = config(tiny_path, "starter", "starter", max_prompt_tokens=200)
    speech = wanted.data.speech.model_copy(update={"requests": ("task", "words"), "held_out_requests": ("json",)})
    wanted = wanted.model_copy(update={"data": wanted.data.model_copy(update={"speech": speech})})
    assets.all_prompts(wanted, tiny_path, print)
    assert asked == [(False, ("task", "words")), (True, ("task", "json"))]


def test_a_model_of_no_known_family(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"'bert'.*audioflamingo3"):
        assets.family_of(tmp_path)


def test_a_model_that_cannot_be_trained_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "voxtral"}')
    with pytest.raises(UserError, match=r"'voxtral', which cannot be trained: vLLM 0.32 loads it"):
        assets.family_of(tmp_path)


@pytest.mark.parametrize(("said", "refused"), [("", True), ('"has_lora_adapter": true', True),
                                               ('"has_lora_adapter": false', False)])  # fmt: skip
def test_granite_with_an_adapter_of_its_own_is_refused(said: str, refused: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f"{{{said}}}")
    why = FAMILIES["granite_speech"].refusal(tmp_path)
    assert (why is not None) == refused
    assert why is None or "merge the adapter into the weights" in why


def test_an_adapter_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no file; use none, aligned, early"):
        assets.adapter_file(str(tmp_path / "none.safetensors"))
    assert assets.adapter_file("none") is None
    assert assets.adapter_file("early").is_file()


def test_pairs_of_a_run_keep_the_ids_that_its_engine_made(tmp_path: Path) -> None:
    """One answer was cut at its length, so it has no end; the last pair's ids are another tokenizer's."""
    builder = PromptBuilder(tiny_tokenizer(), FAMILIES["audio_flamingo3"])
    cut, whole = builder.completion_ids("anna must send")[:-1], builder.completion_ids("report by noon")
    pairs = [
        Pair("p", "anna must send", "report by noon", (tuple(cut), tuple(whole))),
        Pair("p", "anna must send", "report by noon"),
        Pair("p", "anna must send", "report by noon", ((1, 2), (3,))),
    ]
    found = [[ids.tolist() for ids in assets.ids_of_pair(pair, builder)] for pair in pairs]
    assert found[0] == [cut.tolist(), whole.tolist()]
    assert found[1] == found[2] == [[*cut.tolist(), builder.end_id], whole.tolist()]


def test_a_context_beyond_the_checkpoints_positions_is_refused_before_an_engine_starts(
    tiny_path: Path, tmp_path: Path, good: str
) -> None:
    recording(tmp_path / "a.wav", 1.0, seed=1)
    with pytest.raises(UserError, match=r"--max-tokens together wants \d{5} tokens of context, and .* has \d+"):
        next(summarize([tmp_path / "a.wav"], tiny_path, "sum up", max_tokens=10_000))
    tree = config(tiny_path, good, good).model_dump(mode="json")
    wanted = parse(tree | {"rollout": {"engine": {"max_model_len": 10_000}}}, "test")
    assert "rollout.engine.max_model_len wants 10000 tokens" in refusal(wanted, tmp_path)


def test_stretched_positions_and_unknown_ones_are_left_to_the_engine(tmp_path: Path) -> None:
    stretched = {"max_position_embeddings": 10, "rope_scaling": {"rope_type": "yarn"}}
    for text in (stretched, {}):
        (tmp_path / "config.json").write_text(json.dumps({"thinker_config": {"text_config": text}}))
        assets.check_context(tmp_path, 11, "a test")
    (tmp_path / "config.json").write_text(
        json.dumps({"thinker_config": {"text_config": {"max_position_embeddings": 10}}})
    )
    assets.check_context(tmp_path, 10, "a test")
    with pytest.raises(UserError, match="a test wants 11 tokens"):
        assets.check_context(tmp_path, 11, "a test")


def test_a_held_out_manifest_is_checked_for_what_evaluation_needs(
    tiny_path: Path, tmp_path: Path, good: str, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = manifest(tmp_path, "eval.jsonl", row(tmp_path, "a", reference=""))
    model = f'path = "{tiny_path}", max_audio_s = 4, max_prompt_tokens = 140'
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'name = "tiny"\nmodel = {{ {model} }}\ndata = {{ train = "{good}", eval = "{held_out}" }}\n'
        '[[stage]]\nname = "sft"\nsteps = 1\nloss = { kind = "sft" }\n'
    )
    assert cli.main(["data", "check", held_out, "--recipe", str(recipe)]) == 0
    other = tmp_path / "train.jsonl"
    other.write_bytes(Path(held_out).read_bytes())
    assert cli.main(["data", "check", str(other), "--recipe", str(recipe)]) == 2
    assert "reference" in capsys.readouterr().err
