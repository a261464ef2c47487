"""Teach the starter's projector which word each frame of speech belongs to, before any language model runs.

python tools/align_frames.py runs/starter-frames.safetensors

espeak-ng tells when it starts each word, so every audio token has a known text token: the one of the word being spoken
at that moment (of a word of several tokens, the part in proportion to the time). The projector is trained to tell that
token among all that occur, by cross-entropy against the language model's own frozen embeddings, and to give its
embedding, by mean squared error: the frame classifier of hybrid speech recognisers (Bourlard and Morgan 1994) with the
embedding table as its last layer. A frame costs two small matrix products, so minutes on two cores are hundreds of
thousands of examples; through the language model the same time brings a few hundred clips. The adapter written holds
this projector and a fresh LoRA; `recipes/starter-align.toml` goes on from it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cluster.assets import STARTER, student_checkpoint
from learner.checkpoint import export_adapter
from learner.model import SpeechPolicy
from speechsum.audio import SAMPLE_RATE
from speechsum.config import LoraConfig
from speechsum.families import FAMILIES, Family
from speechsum.precision import resolved
from speechsum.starter.grammar import sample_talk, sample_words
from speechsum.starter.voice import Speaker, Word, sample_delivery

CLIPS, HELD_OUT_CLIPS = 4000, 128
EPOCHS, FRAMES_PER_STEP = 10, 4096
LR, LOGIT_SCALE, MSE_WEIGHT = 2e-3, 10.0, 20.0
CLIPS_PER_ENCODING = 64
PUNCTUATION = " .,;?!"


def main(out: Path) -> int:
    """Speaks, encodes, trains, says how often held-out frames are told right, and writes the adapter."""
    torch.manual_seed(0)
    checkpoint, family = student_checkpoint(STARTER, print), FAMILIES["audio_flamingo3"]
    model = family.load(checkpoint, resolved("auto", gpu=False), "eager")
    train = labelled_frames(model, family, checkpoint, CLIPS, seed=1, held_out=False)
    test = labelled_frames(model, family, checkpoint, HELD_OUT_CLIPS, seed=2, held_out=True)
    policy = SpeechPolicy(model, family, LoraConfig(), train_projector=True)
    table = policy.decoder.get_input_embeddings().weight.detach().float()
    fit(policy.projector, table, train, test)
    export_adapter(out, policy.trainable(), torch.bfloat16)
    print(out)
    return 0


def labelled_frames(
    model: Any, family: Family, checkpoint: Path, clips: int, *, seed: int, held_out: bool
) -> tuple[Tensor, Tensor]:
    """Encoder states [frames, D] of newly spoken clips, words and talks in turn, and each one's token id [frames]."""
    from transformers import AutoFeatureExtractor, AutoTokenizer

    extractor, tokenizer = AutoFeatureExtractor.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    spoken = list(_spoken(clips, seed, held_out))
    states: list[Tensor] = []
    for start in range(0, clips, CLIPS_PER_ENCODING):
        batch = [samples for samples, _ in spoken[start : start + CLIPS_PER_ENCODING]]
        states += [s.clone() for s in family.encode(model, extractor, batch)]
        print(f"encoded {len(states)} of {clips} clips", flush=True)
    labels = [
        frame_tokens(words, len(samples) / SAMPLE_RATE, len(s), tokenizer, family.tokens_per_s)
        for (samples, words), s in zip(spoken, states, strict=True)
    ]
    return torch.cat(states).float(), torch.cat(labels)


def _spoken(clips: int, seed: int, held_out: bool) -> Iterator[tuple[Any, list[Word]]]:
    rng, speaker = random.Random(seed), Speaker()
    for i in range(clips):
        talk = sample_talk(rng, held_out) if i % 2 else sample_words(rng)
        yield speaker.say(talk.transcript, *sample_delivery(rng, held_out)), list(speaker.words)


def frame_tokens(words: list[Word], duration_s: float, frames: int, tokenizer: Any, per_s: float) -> Tensor:
    """The token id [frames] spoken in each frame; a line break where nothing is."""
    (silence,) = tokenizer("\n", add_special_tokens=False).input_ids
    tokens = torch.full((frames,), silence)
    ends = [word.start_s for word in words[1:]] + [duration_s]
    for word, end_s in zip(words, ends, strict=True):
        if not (text := word.text.strip(PUNCTUATION)):
            continue
        ids = tokenizer(f" {text}", add_special_tokens=False).input_ids
        start, end = word.start_s * per_s, end_s * per_s
        for frame in range(round(start), min(frames, round(end))):
            tokens[frame] = ids[min(len(ids) - 1, int((frame + 0.5 - start) / (end - start) * len(ids)))]
    return tokens


def fit(projector: nn.Module, table: Tensor, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> None:
    """Train `projector` in place; prints after each epoch the share of frames whose token is told right."""
    known = train[1].unique()
    index = torch.full((len(table),), -1)
    index[known] = torch.arange(len(known))
    table = table[known]
    (states, tokens), (test_states, test_tokens) = ((x, index[y]) for x, y in (train, test))
    steps = EPOCHS * (len(states) // FRAMES_PER_STEP)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(states))[: steps // EPOCHS * FRAMES_PER_STEP]
        for batch in order.split(FRAMES_PER_STEP):
            heard, wanted = projector(states[batch]), tokens[batch]
            loss = nn.functional.cross_entropy(LOGIT_SCALE * heard @ table.T, wanted)
            loss = loss + MSE_WEIGHT * nn.functional.mse_loss(heard, table[wanted])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        with torch.no_grad():
            right = ((projector(test_states) @ table.T).argmax(-1) == test_tokens).float().mean()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, held-out frames told right {float(right):.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
