"""The recogniser on a tiny random Whisper: windows, order, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from actors.recogniser import Recogniser
from speechsum.errors import UserError
from tests.tiny import noise, tiny_tokenizer

WINDOW_S = 1


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, windows of one second."""
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    folder = tmp_path_factory.mktemp("whisper")
    tokenizer = tiny_tokenizer(audio=False)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    torch.manual_seed(5)
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=80, init_std=1.0,
        max_source_positions=50 * WINDOW_S, max_target_positions=12, decoder_start_token_id=start, bos_token_id=end,
        eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_S).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({
        "decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": end, "max_length": 12,
        "no_timestamps_token_id": tokenizer.convert_tokens_to_ids("<file_sep>"), "is_multilingual": False,
    }))  # fmt: skip
    return folder


def test_each_clip_has_its_own_text_however_they_are_batched(whisper: Path) -> None:
    recogniser = Recogniser(whisper)
    clips = [noise(0.5 * WINDOW_S, seed) for seed in range(9)]
    texts = recogniser.transcribe(clips)
    assert len(set(texts)) > 1  # it hears the clip
    assert texts == [recogniser.transcribe([clip])[0] for clip in clips]


def test_what_is_longer_than_the_window_is_heard_in_pieces(whisper: Path) -> None:
    recogniser = Recogniser(whisper)
    first, second = noise(WINDOW_S, 1), noise(0.5 * WINDOW_S, 2)
    apart = recogniser.transcribe([first, second])
    assert recogniser.transcribe([np.concatenate([first, second])]) == [" ".join(apart).strip()]


def test_a_checkpoint_that_would_write_timestamps_is_refused(whisper: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(whisper, folder)
    described = json.loads((folder / "generation_config.json").read_text())
    del described["no_timestamps_token_id"]
    (folder / "generation_config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="no_timestamps_token_id"):
        Recogniser(folder)
