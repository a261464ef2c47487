"""The losses against TRL's own code, where both define the same thing: GRPO and its kin, DPO, generalised JSD.

    pip install -e .[compare]
    pytest tests/learner/test_trl.py

TRL's trainers compute a loss within a method that also talks to models and loggers; a stand-in trainer gives them the
log-probs of the test and swallows what they log.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from learner.losses import distillation_loss, dpo_loss, grpo_loss, k3_penalty, token_weights

pytest.importorskip("trl", reason="TRL is not installed: pip install -e .[compare]")

from trl import DPOTrainer, GRPOTrainer
from trl.experimental.gkd import GKDTrainer

LENGTHS = [3, 5, 1, 4]
LONGEST = max(LENGTHS)
ADVANTAGES = [1.5, -0.5, 0.25, -2.0]
MASK = torch.tensor([[1.0] * n + [0.0] * (LONGEST - n) for n in LENGTHS], dtype=torch.float64)


def rows(seed: int) -> torch.Tensor:
    """Log-probs [sequences, LONGEST]; those of one seed are near enough to another's for some to be clipped."""
    noise = torch.randn(len(LENGTHS), LONGEST, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (-1.5 + 0.4 * noise).clamp(max=-0.01)


def flat(values: torch.Tensor) -> torch.Tensor:
    return values[MASK.bool()]


def stand_in(**settings: Any) -> MagicMock:
    same = lambda tensor, **_: tensor  # noqa: E731
    trainer = MagicMock(**settings)
    trainer.accelerator = SimpleNamespace(
        gather=same, reduce=same, gather_for_metrics=same, num_processes=1, device=torch.device("cpu"),
        sync_gradients=False,
    )  # fmt: skip
    return trainer


def trl_grpo(logprobs: torch.Tensor, inputs: dict[str, torch.Tensor], **settings: Any) -> torch.Tensor:
    """Of `GRPOTrainer._compute_loss`."""
    chosen = {
        "loss_type": "dapo", "importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.28,
        "beta": 0.0, "use_vllm": False, "vllm_importance_sampling_correction": True, "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None, "aux_loss_enabled": False, "_entropy_bonus_enabled": False,
        "max_completion_length": LONGEST, "current_gradient_accumulation_steps": 1,
    } | settings  # fmt: skip
    trainer = stand_in(**chosen)
    trainer.args = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    trainer._get_per_token_logps_and_entropies.return_value = (logprobs, torch.zeros_like(logprobs), None)
    ids = torch.zeros(MASK.shape, dtype=torch.long)
    given = {
        "prompt_ids": ids, "prompt_mask": torch.ones_like(ids), "completion_ids": ids, "completion_mask": MASK,
        "advantages": torch.tensor(ADVANTAGES, dtype=torch.float64), "num_items_in_batch": MASK.sum(),
    }  # fmt: skip
    return GRPOTrainer._compute_loss(trainer, None, given | inputs)


def ours_grpo(logprobs: torch.Tensor, rollout: torch.Tensor, norm: Any, fresh: bool, **options: Any) -> torch.Tensor:
    weights = token_weights(LENGTHS, loss_tokens=sum(LENGTHS), sequences=len(LENGTHS), norm=norm, max_tokens=LONGEST)
    advantages = torch.tensor(ADVANTAGES, dtype=torch.float64).repeat_interleave(torch.tensor(LENGTHS))
    settings = {"ratio": "token", "objective": "clip", "clip_low": 0.2, "clip_high": 0.28, "is_cap": 2.0} | options
    on_policy = torch.full((sum(LENGTHS),), fresh)
    return grpo_loss(
        flat(logprobs), flat(rollout), advantages, weights.double(), on_policy, LENGTHS, **settings
    ).loss  # fmt: skip


def agree(ours: Any, theirs: Any) -> None:
    """Values and gradients of two functions of the same log-probs."""
    found = []
    for loss_of in (ours, theirs):
        leaf = rows(0).requires_grad_()
        loss = loss_of(leaf)
        loss.backward()
        found.append((loss.detach(), leaf.grad * MASK))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-9)
    assert found[0][1].abs().max() > 0


@pytest.mark.parametrize(
    ("loss_type", "norm"), [("dapo", "token"), ("bnpo", "token"), ("grpo", "sequence"), ("dr_grpo", "max_tokens")]
)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_policy_gradients_of_stale_tokens(loss_type: str, norm: str, level: str) -> None:
    old = rows(1)
    agree(
        lambda logprobs: ours_grpo(logprobs, old, norm, fresh=False, ratio=level),
        lambda logprobs: trl_grpo(
            logprobs, {"old_per_token_logps": old}, loss_type=loss_type, importance_sampling_level=level
        ),
    )


def test_the_engine_s_numerics_are_corrected_alike() -> None:
    sampled = rows(1)
    agree(
        lambda logprobs: ours_grpo(logprobs, sampled, "token", fresh=True, is_cap=1.2),
        lambda logprobs: trl_grpo(
            logprobs, {"importance_sampling_ratio": (logprobs.detach() - sampled).exp().clamp(max=1.2)}, use_vllm=True
        ),
    )


def test_cispo_whose_weights_have_no_floor() -> None:
    old = rows(1)
    agree(
        lambda logprobs: ours_grpo(logprobs, old, "token", fresh=False, objective="cispo", clip_low=1.0, clip_high=0.3),
        lambda logprobs: trl_grpo(logprobs, {"old_per_token_logps": old}, loss_type="cispo", epsilon_high=1.3),
    )


def test_the_penalty_for_leaving_the_reference() -> None:
    old, reference = rows(1), rows(2)
    weights = token_weights(LENGTHS, loss_tokens=sum(LENGTHS), sequences=len(LENGTHS)).double()
    agree(
        lambda logprobs: (
            ours_grpo(logprobs, old, "token", fresh=False)
            + 0.1 * k3_penalty(flat(logprobs), flat(reference), weights).loss
        ),
        lambda logprobs: trl_grpo(logprobs, {"old_per_token_logps": old, "ref_per_token_logps": reference}, beta=0.1),
    )


@pytest.mark.parametrize(
    ("loss_type", "options"),
    [
        ("sigmoid", {}),
        ("sigmoid_norm", {"length_normalised": True}),
        ("ipo", {"objective": "ipo", "length_normalised": True}),  # TRL's is the mean of a sequence
        ("robust", {"objective": "robust", "label_smoothing": 0.1}),
    ],
)
def test_preferences(loss_type: str, options: dict[str, Any]) -> None:
    """TRL has the preferred sequences first, then the others; here they alternate."""
    reference = rows(1)
    prompt = torch.zeros(len(LENGTHS), 1)

    def theirs(logprobs: torch.Tensor) -> torch.Tensor:
        order = [0, 2, 1, 3]
        mask = torch.cat([prompt, MASK], dim=1)[order]
        own = (MASK * logprobs)[order]
        trainer = stand_in(
            beta=0.3, loss_types=[loss_type], loss_weights=[1.0], f_divergence_type="reverse_kl", label_smoothing=0.1,
            ld_alpha=None, precompute_ref_logps=True, use_weighting=False, aux_loss_enabled=False,
        )  # fmt: skip
        logged = torch.zeros_like(own)
        outputs = SimpleNamespace(log_probs=own, entropy=logged, mean_logits=logged, is_top1=logged > 0)
        chosen, rejected = (MASK * reference)[order].sum(dim=1).chunk(2)
        ids = torch.zeros(mask.shape, dtype=torch.long)
        inputs = {
            "input_ids": ids, "attention_mask": mask, "completion_mask": mask,
            "ref_chosen_logps": chosen, "ref_rejected_logps": rejected,
        }  # fmt: skip
        return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)

    settings = {"objective": "sigmoid", "label_smoothing": 0.0, "length_normalised": False, "sft_weight": 0.0} | options
    agree(
        lambda logprobs: dpo_loss(flat(logprobs), flat(reference), LENGTHS, pairs=2, beta=0.3, **settings).loss,
        theirs,
    )


@pytest.mark.parametrize(("divergence", "beta"), [("forward_kl", 0.0), ("reverse_kl", 1.0), ("jsd", 0.3)])
def test_divergences_over_a_whole_vocabulary(divergence: Any, beta: float) -> None:
    """A vocabulary of five, of which the teacher names four."""
    draw = torch.Generator().manual_seed(3)
    logits, teacher = (torch.randn(6, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    found = []
    for ours in (True, False):
        leaf = logits.clone().requires_grad_()
        if ours:
            named = teacher.log_softmax(-1)[:, :4]
            weights = torch.full((6,), 1 / 6, dtype=torch.float64)
            loss = distillation_loss(leaf.log_softmax(-1), named, weights, divergence=divergence, beta=beta or 0.5).loss
        else:
            labels = torch.zeros(1, 6, dtype=torch.long)
            loss = GKDTrainer.generalized_jsd_loss(leaf[None], teacher[None], labels, beta=beta)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-9)
