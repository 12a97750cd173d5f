"""How far one model is from another: greedy tokens, logits and KL, and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from adaptc.evaluation.text import Ids

Logits = npt.NDArray[np.float32]
"""float32 [tokens, vocab]."""

NEW_TOKENS = 20
"""How many tokens are written greedily by both."""


@dataclass(frozen=True, slots=True)
class ParityLimits:
    """What is allowed; None is not looked at.

    Attributes:
        same_tokens: Number of `NEW_TOKENS` greedy tokens that must be the same from the start, for every prompt.
        max_logit_error: Largest difference of a logit.
        mean_kl: Mean over positions of KL(source model || bundle), in nats.
    """

    same_tokens: int
    max_logit_error: float | None
    mean_kl: float


LIMITS = {
    "fp32": ParityLimits(NEW_TOKENS, 1e-3, 1e-6),
    "fp16": ParityLimits(0, None, 1e-3),
    "int8": ParityLimits(0, None, 0.02),
    "int4": ParityLimits(0, None, 0.25),
}
"""By the bundle's weights. With fewer bits one near tie can change all tokens that follow, so only KL is judged."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a bundle is from its source model, on `PROMPTS` and what the source model writes after them.

    Attributes:
        same_tokens: Greedy tokens that are the same from the start, in the worst prompt.
        new_tokens: Number of new tokens that were compared.
        max_logit_error: Largest absolute difference of a logit.
        mean_kl: Mean KL(source model || bundle) of the next token, nats.
        top1_agreement: Share of positions at which both have the same most likely token.
        positions: How many positions were compared.
    """

    same_tokens: int
    new_tokens: int
    max_logit_error: float
    mean_kl: float
    top1_agreement: float
    positions: int


class Model(Protocol):
    """Something that predicts tokens."""

    def logits(self, ids: Ids) -> Logits:
        """int64 [tokens] -> float32 [tokens, vocab], at every position."""

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """The most likely continuation; an end token does not end it."""


def compare(model: Model, reference: Model, prompts: Iterable[Sequence[int]], new_tokens: int = NEW_TOKENS) -> Parity:
    """Compare two models on prompts and on what `reference` writes after them.

    Args:
        model: The one in question.
        reference: What it should be.
        prompts: Token ids, each at least one.
        new_tokens: Tokens written after each, at least 1.
    """
    same, worst, kl, agreed, positions = new_tokens, 0.0, 0.0, 0, 0
    for prompt in prompts:
        written = reference.greedy(prompt, new_tokens)
        same = min(same, _same_start(written, model.greedy(prompt, new_tokens)))
        ids = np.array([*prompt, *written], np.int64)
        ours, theirs = model.logits(ids), reference.logits(ids)
        worst = max(worst, float(np.abs(ours - theirs).max()))
        kl += float(_kl(theirs, ours).sum())
        agreed += int((ours.argmax(1) == theirs.argmax(1)).sum())
        positions += len(ids)
    return Parity(same, new_tokens, worst, kl / positions, agreed / positions, positions)


def worst(parities: Sequence[Parity]) -> Parity:
    """Of several comparisons of the same prompts, the worst of each figure; a NaN stays one."""
    return Parity(
        min(each.same_tokens for each in parities),
        parities[0].new_tokens,
        float(np.max([each.max_logit_error for each in parities])),
        float(np.max([each.mean_kl for each in parities])),
        float(np.min([each.top1_agreement for each in parities])),
        parities[0].positions,
    )


def faults(parity: Parity, limits: ParityLimits) -> list[str]:
    """What is outside the limits, in words; empty if nothing is."""
    exceeded = []
    if parity.same_tokens < limits.same_tokens:
        exceeded.append(f"{parity.same_tokens} greedy tokens are the same, {limits.same_tokens} must be")
    # Written so that a NaN fails.
    if limits.max_logit_error is not None and not parity.max_logit_error <= limits.max_logit_error:
        exceeded.append(f"a logit is off by {parity.max_logit_error:.2g}, at most {limits.max_logit_error:g} may be")
    if not parity.mean_kl <= limits.mean_kl:
        exceeded.append(f"mean KL is {parity.mean_kl:.3g} nats, at most {limits.mean_kl:g} may be")
    return exceeded


def _kl(p: Logits, q: Logits) -> npt.NDArray[np.float64]:
    """KL(softmax p || softmax q) of each row; float64, as differences of near equal numbers are summed."""
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    divergence: npt.NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(1)
    return divergence


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log_probabilities: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return log_probabilities


def _same_start(a: Sequence[int], b: Sequence[int]) -> int:
    return next((index for index, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
