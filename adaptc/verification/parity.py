"""How far one model's predictions are from another's: logits, KL and most likely tokens, and what is allowed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from adaptc.runtime.model.decoder import Ids, Logits

NEW_TOKENS = 20
"""How many tokens the source model writes after each prompt."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A text on which models are compared.

    Attributes:
        ids: int64 [tokens], a prompt and what the source model writes after it.
        prompt: How many of them are the prompt, which is read at once; the others are read one by one too.
        last: How many positions count when all is read at once: those at the end.
    """

    ids: Ids
    prompt: int
    last: int


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model says to a sample.

    Attributes:
        read: float32 [last, vocab], at the sample's last positions, all read at once.
        stepped: float32 [written + 1, vocab], from the prompt's end on, token by token through the path of `generate`;
            None for a model that is only read.
    """

    read: Logits
    stepped: Logits | None = None


class Model(Protocol):
    """Something that predicts tokens."""

    def predictions(self, sample: Passage) -> Predictions:
        """What it says to a sample."""


class Writer(Model, Protocol):
    """A model that others are compared with."""

    def write(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        """The most likely continuation of each prompt; an end token does not end it."""


class Written(ABC):
    """A `Writer` that reads all that stands before again for each token, so that no cache takes part."""

    @abstractmethod
    def logits(self, ids: Ids) -> Logits:
        """int64 [tokens] -> float32 [tokens, vocab], or fewer positions at the end."""

    def write(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        """See `Writer`."""
        return [self._continuation(list(prompt), new_tokens) for prompt in prompts]

    def _continuation(self, prompt: list[int], new_tokens: int) -> list[int]:
        ids = list(prompt)
        for _ in range(new_tokens):
            ids.append(int(self.logits(np.array(ids, np.int64))[-1].argmax()))
        return ids[len(prompt) :]


@dataclass(frozen=True, slots=True)
class ParityLimits:
    """What is allowed; None is not judged.

    Attributes:
        max_logit_error: Largest difference of a logit, for logits up to `USUAL_LOGIT`; it grows with larger ones.
        mean_kl: Mean over positions of KL(reference || model), in nats.
        top1_agreement: Least share of positions at which both have the same most likely token.
    """

    max_logit_error: float | None
    mean_kl: float
    top1_agreement: float | None = None


USUAL_LOGIT = 32.0
"""Up to this size of logits float32 sums of a model's width are good to a tenth of `LOWERING`'s limit."""

LOWERING = ParityLimits(1e-3, 1e-6)
"""Of the graphs, in float32 arithmetic, from the source model with the same rounded weights: whatever the weights."""

ARITHMETIC = {
    "int8": ParityLimits(None, 0.02),
    "int4": ParityLimits(None, 0.02),
    "source": ParityLimits(None, 0.02),
}
"""Of graphs whose kernels round activations to int8, from the same graphs in float32 arithmetic, by their weights."""

LOSS = {
    "fp32": ParityLimits(1e-3, 1e-6),
    "fp16": ParityLimits(None, 1e-3),
    "bf16": ParityLimits(None, 0.02),
    "int8": ParityLimits(None, 0.02),
    "int4": ParityLimits(None, 1.0),
    "source": ParityLimits(None, 0.02),
}
"""Of the bundle as it runs from the source model as it is, by the bundle's weights: all that rounding costs.

With 4 bits a right bundle of a random model may lose 0.3 nats (docs/results/verify.md); a nat is broken rounding.
"""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a model is from another.

    Attributes:
        same_tokens: Written tokens that both find most likely, from the start, in the worst sample.
        new_tokens: Number of written tokens in a sample.
        max_logit_error: Largest absolute difference of a logit.
        mean_kl: Mean KL(reference || model) of the next token, nats.
        worst_kl: The largest of any position.
        top1_agreement: Share of positions at which both have the same most likely token.
        positions: How many positions were compared.
        largest_logit: Size of the reference's largest logit.
    """

    same_tokens: int
    new_tokens: int
    max_logit_error: float
    mean_kl: float
    worst_kl: float
    top1_agreement: float
    positions: int
    largest_logit: float


def samples_of(reference: Writer, prompts: Sequence[Sequence[int]], new_tokens: int = NEW_TOKENS) -> list[Passage]:
    """Prompts, and what a model writes after each.

    Args:
        reference: Who writes.
        prompts: Token ids, each at least one. Of long ones only the end counts when they are read at once.
        new_tokens: Tokens written after each, at least 1.
    """
    samples = []
    for prompt, written in zip(prompts, reference.write(prompts, new_tokens), strict=True):
        ids = np.array([*prompt, *written], np.int64)
        samples.append(Passage(ids, len(prompt), min(len(ids), 3 * new_tokens)))
    return samples


def compare(model: Sequence[Predictions], reference: Sequence[Predictions]) -> Parity:
    """Compare what two models say to the same samples.

    Args:
        model: Of the one in question.
        reference: What it should say. Only `read` is looked at: a whole sequence and its steps are to be the same.
    """
    same: list[int] = []
    worst, largest, agreed, new_tokens = 0.0, 0.0, 0, 0
    divergences: list[npt.NDArray[np.float64]] = []
    for ours, theirs in zip(model, reference, strict=True):
        for found in (ours.read, ours.stepped):
            if found is None:
                continue
            expected = theirs.read[-len(found) :]
            worst = float(np.maximum(worst, np.abs(found - expected).max()))  # a NaN stays one
            divergences.append(_kl(expected, found))
            agreed += int((found.argmax(1) == expected.argmax(1)).sum())
        largest = max(largest, float(np.abs(theirs.read).max()))
        stepped = ours.read[-NEW_TOKENS - 1 :] if ours.stepped is None else ours.stepped
        matches = stepped.argmax(1) == theirs.read[-len(stepped) :].argmax(1)
        new_tokens = len(stepped) - 1
        same.append(new_tokens if matches[:-1].all() else int(matches[:-1].argmin()))
    kl = np.concatenate(divergences)
    mean, most = float(kl.mean()), float(kl.max())
    return Parity(min(same), new_tokens, worst, mean, most, agreed / len(kl), len(kl), largest)


def worst(parities: Sequence[Parity]) -> Parity:
    """Of several comparisons of the same samples, the worst of each figure; a NaN stays one."""
    return Parity(
        min(each.same_tokens for each in parities),
        parities[0].new_tokens,
        float(np.max([each.max_logit_error for each in parities])),
        float(np.max([each.mean_kl for each in parities])),
        float(np.max([each.worst_kl for each in parities])),
        float(np.min([each.top1_agreement for each in parities])),
        parities[0].positions,
        parities[0].largest_logit,
    )


def faults(parity: Parity, limits: ParityLimits) -> list[str]:
    """What is outside the limits, in words; empty if nothing is."""
    exceeded = []
    # Written so that a NaN fails.
    if limits.max_logit_error is not None:
        most = limits.max_logit_error * max(1.0, parity.largest_logit / USUAL_LOGIT)
        if not parity.max_logit_error <= most:
            exceeded.append(f"a logit is off by {parity.max_logit_error:.2g}, at most {most:.2g} may be")
    if not parity.mean_kl <= limits.mean_kl:
        exceeded.append(f"mean KL is {parity.mean_kl:.3g} nats, at most {limits.mean_kl:g} may be")
    if limits.top1_agreement is not None and not parity.top1_agreement >= limits.top1_agreement:
        exceeded.append(
            f"the most likely token is the same at {parity.top1_agreement:.0%} of the positions, "
            f"at least {limits.top1_agreement:.0%} must be"
        )
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
