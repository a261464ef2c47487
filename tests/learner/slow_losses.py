"""The losses once more, slowly: plain floats, one token after the other, written from the papers' formulas.

Nothing here comes from the code under test. Where a loss is an ordinary function of log-probs its gradient is taken by
`slopes`; where it stops gradients, as importance ratios do, a token's derivative stands beside its value.
"""

from __future__ import annotations

import math


def slopes(value, at, step=1e-5):
    """Derivatives of `value` by each of the numbers `at`, by central differences."""
    found = []
    for i, x in enumerate(at):
        up, down = ([*at[:i], moved, *at[i + 1 :]] for moved in (x + step, x - step))
        found.append((value(up) - value(down)) / (2 * step))
    return found


def slow_weights(lengths, norm, loss_tokens, sequences, longest):
    """What each token counts, of sequences of `lengths` out of a batch of `loss_tokens` and `sequences`."""
    of_sequence = {
        "token": lambda n: 1 / loss_tokens,
        "sequence": lambda n: 1 / (sequences * n),
        "max_tokens": lambda n: 1 / (sequences * longest),
    }[norm]
    return [of_sequence(n) for n in lengths for _ in range(n)]


def slow_sft(logprobs, weights):
    """Negative log-likelihood."""
    return math.fsum(-w * logp for w, logp in zip(weights, logprobs, strict=True))


def slow_k3(logprobs, reference, weights):
    """pi_ref / pi - log(pi_ref / pi) - 1, equation 4 of 2402.03300."""
    ratios = [math.exp(ref) / math.exp(logp) for logp, ref in zip(logprobs, reference, strict=True)]
    return math.fsum(w * (r - math.log(r) - 1) for w, r in zip(weights, ratios, strict=True))


def slow_divergence(teacher, student, divergence, beta):
    """Of two lists of probabilities of the same events; generalised JSD as in 2306.13649."""
    kl = lambda p, q: math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))  # noqa: E731
    if divergence == "forward_kl":
        return kl(teacher, student)
    if divergence == "reverse_kl":
        return kl(student, teacher)
    mixture = [beta * t + (1 - beta) * s for t, s in zip(teacher, student, strict=True)]
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def slow_lesson(student, top, divergence, beta):
    """A token's divergence, by log-probs: the student's with that of the rest, the teacher's `top` without it."""
    named = [math.exp(logp) for logp in top]
    return slow_divergence([*named, 1 - math.fsum(named)], [math.exp(logp) for logp in student], divergence, beta)


# --- grpo ------------------------------------------------------------------------------------------------------------


def slow_ratios(tokens, fresh, ratio):
    """Importance ratio of each token of one sequence, in plain floats; 1 where none is known."""
    logs = [0.0 if fresh or not math.isfinite(rollout) else logp - rollout for logp, rollout, _, _ in tokens]
    if ratio == "token":
        return [math.exp(log) for log in logs]
    known = [log for log, token in zip(logs, tokens, strict=True) if math.isfinite(token[1])]
    return [math.exp(math.fsum(known) / len(known)) if known else 1.0] * len(tokens)


def slow_token(token, r, fresh, objective, low, high, cap):
    """One token's loss and its derivative by logp, by cases."""
    logp, rollout, advantage, weight = token
    if not math.isfinite(rollout):
        return 0.0, 0.0
    correction = min(math.exp(logp - rollout), cap) if fresh and cap is not None else 1.0
    slope = -weight * correction * advantage
    if objective == "cispo":
        held = 1 - low if r < 1 - low else 1 + high if r > 1 + high else r
        return slope * held * logp, slope * held
    if advantage > 0 and r > 1 + high:
        return slope * (1 + high), 0.0
    if advantage < 0 and r < 1 - low:
        return slope * (1 - low), 0.0
    return slope * r, slope * r


def at_a_corner(r, low, high):
    """Whether a stale token's ratio is where the clip has no derivative to compare."""
    return min(abs(r - 1 - high), abs(r - 1 + low)) <= 1e-6
