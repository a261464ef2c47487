"""The starter as it ships: real weights from packages, a real adapter, speech that it has never heard."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.recogniser import Recogniser
from cluster import assets
from speechsum import cli
from speechsum.config import STARTER
from speechsum.data import read_manifest
from speechsum.starter.model import WINDOW_S, whisper_encoder
from speechsum.starter.speech import synthesize
from speechsum.starter.voice import VOICES_HELD_OUT, Speaker
from speechsum.textscores import fact_recall, word_error_rate

pytestmark = pytest.mark.e2e
MAX_ADAPTER_BYTES = 16e6


@pytest.fixture(scope="module")
def starter() -> Path:
    return assets.student_checkpoint(STARTER, print)


def test_the_encoder_is_whispers(starter: Path) -> None:
    """transformers' own Whisper encoder, given the same weights, hears the same in a window that sound fills."""
    from transformers import AudioFlamingo3ForConditionalGeneration, WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    ours = AudioFlamingo3ForConditionalGeneration.from_pretrained(starter, dtype=torch.float32).model.audio_tower
    config = WhisperConfig(
        d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536, num_mel_bins=80
    )
    theirs = WhisperEncoder(config).eval()
    theirs.load_state_dict({name: tensor.float() for name, tensor in whisper_encoder()})
    theirs.layer_norm = torch.nn.Identity()  # ours normalises after it has pooled
    mel = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 80, 100 * WINDOW_S)).astype("float32"))
    with torch.no_grad():
        heard = ours(mel, torch.ones(1, mel.shape[-1], dtype=torch.long)).last_hidden_state
        pooled = ours.avg_pooler(theirs(mel).last_hidden_state.transpose(1, 2)).transpose(1, 2)
        expected = ours.layer_norm(pooled)
    torch.testing.assert_close(heard, expected, atol=1e-3, rtol=1e-3)


def test_its_language_model_answers(starter: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = assets.starter_text(print)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France? Answer in one word."}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    answer = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


@pytest.mark.parametrize("name", ["aligned", "early", "teacher", "terse"])
def test_its_adapters_are_small(name: str) -> None:
    path = resources.files("speechsum.starter") / f"{name}.safetensors"
    assert Path(str(path)).stat().st_size <= MAX_ADAPTER_BYTES


def test_its_recogniser_is_whispers_and_hears(tmp_path: Path) -> None:
    """Every weight of transformers' own class is there, and a plainly spoken sentence comes through."""
    from transformers import WhisperForConditionalGeneration

    folder = assets.recogniser_checkpoint(STARTER, tmp_path, print)
    _, told = WhisperForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    samples = Speaker().say("The meeting was moved to Friday.", VOICES_HELD_OUT[0], 150, 50)
    (heard,) = Recogniser(folder).transcribe([samples.astype("float32")])
    assert word_error_rate(heard, "the meeting was moved to friday") < 0.5


def test_summarize_listens(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A line for each recording, in order; and what it says comes from that recording, not from another."""
    manifest = synthesize(tmp_path, clips=12, seed=5, held_out=True, kinds=["sentence"])
    prompts = read_manifest(manifest)
    paths = [p.audio.path for p in prompts]
    assert cli.main(["summarize", *paths, "--json", "--instruction", prompts[0].instruction]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["audio"] for row in rows] == paths
    right = [fact_recall(row["summary"], p.facts) for row, p in zip(rows, prompts, strict=True)]
    wrong = [fact_recall(row["summary"], p.facts) for row, p in zip(rows, [*prompts[6:], *prompts[:6]], strict=True)]
    assert np.mean(right) > np.mean(wrong) + 0.2
