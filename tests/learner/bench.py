"""A policy outside any process group, and random samples for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoFeatureExtractor

from learner.model import SpeechPolicy, pack
from speechsum.config import LoraConfig
from speechsum.families import FAMILIES
from speechsum.prompting import PromptBuilder
from speechsum.types import AudioRef, Completion, TrainingSample, read_only
from tests.tiny import noise

FAMILY = FAMILIES["audio_flamingo3"]
LORA = LoraConfig(rank=3, alpha=6)
CLIPS = {"one": 1.0, "two": 0.4, "long": 2.5}  # seconds; the last spans two windows


def sample(prompt, completions, clip="one"):
    """A sample from lists of ids."""
    made = tuple(
        Completion(read_only(c, "int32"), read_only([-1.0] * len(c), "float32"), float(k), 0)
        for k, c in enumerate(completions)
    )
    return TrainingSample(f"{clip}-{len(prompt)}", AudioRef(clip), read_only(prompt, "int32"), made)


class Bench:
    """A policy whose LoRA has left zero, the whole model around it, and samples to run."""

    def __init__(self, path: Path, *, trained: bool = True, dtype: str = "float32") -> None:
        torch.manual_seed(0)
        self.path = path
        self.model = FAMILY.load(path, dtype, "eager")
        self.policy = SpeechPolicy(self.model, FAMILY, LORA, train_projector=True)
        self.builder = PromptBuilder.load(path, FAMILY)
        self.audio_id = self.builder.audio_id
        for name, parameter in self.policy.named_parameters():
            if trained and "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        extractor = AutoFeatureExtractor.from_pretrained(path)
        encoded = FAMILY.encode(self.model, extractor, [noise(s, i) for i, s in enumerate(CLIPS.values())])
        self.states = dict(zip(CLIPS, encoded, strict=True))

    def sample(self, lengths, clip="one", instruction="summarize what is said", seed=0):
        """Random completions of given lengths after a real prompt."""
        prompt = self.builder.expand(self.builder.request_ids(instruction), len(self.states[clip]))
        rng = np.random.default_rng(seed)
        return sample(prompt, [rng.integers(4, 330, n) for n in lengths], clip)

    def run(self, samples, *, temperature=1.0, chunk=1024, pad_id=2):
        """Log-probs and entropy of all response tokens."""
        nobody = torch.zeros(sum(s.response_tokens for s in samples), 0, dtype=torch.long)
        return self.score(samples, nobody, temperature=temperature, chunk=chunk, pad_id=pad_id)[:2]

    def score(self, samples, candidates, *, temperature=1.0, chunk=1024, pad_id=2):
        """Log-probs, entropy, and the log-probs of candidates [N, K] and of all tokens besides."""
        rows, states = pack(samples, pad_id), torch.cat([self.states[s.audio.key] for s in samples])
        return self.policy(rows, states, self.audio_id, candidates, temperature, chunk)

    def gradients(self, logprobs, weights):
        """Of a weighted sum, by parameter name."""
        self.policy.zero_grad()
        (logprobs * weights).sum().backward()
        return {n: p.grad.clone() for n, p in self.policy.trainable().items()}

    def adapter(self):
        """Trainable tensors under the names they travel by."""
        return {n: p.detach().clone() for n, p in self.policy.trainable().items()}
