"""Is a bundle what it should be: its files by their hashes, its numbers against the model it was compiled from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from adaptc.errors import BundleError
from adaptc.runtime.bundle.folder import Bundle

Stage = Callable[[str], None]
Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

NEW_TOKENS = 20
"""How many tokens are written greedily by both."""

PROMPTS = (
    "The capital of France is",
    "Water boils at a lower temperature on a mountain because",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "Once upon a time there was a lighthouse keeper who",
    "1, 2, 3, 5, 8, 13,",
    "Dear Anna,\n\nthank you for your letter. I am glad to hear that",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What is allowed; None is not looked at.

    Attributes:
        same_tokens: Of `NEW_TOKENS` greedy tokens, how many must be the same from the start, for every prompt.
        max_logit_error: Largest difference of a logit.
        mean_kl: Mean over positions of KL(source model || bundle), in nats.
    """

    same_tokens: int
    max_logit_error: float | None
    mean_kl: float


LIMITS = {
    "fp32": Limits(NEW_TOKENS, 1e-3, 1e-6),
    "fp16": Limits(0, None, 1e-3),
    "int8": Limits(0, None, 0.02),
    "int4": Limits(0, None, 0.25),
}
"""By the bundle's weights. With fewer bits one near tie can change all tokens that follow, so only KL is judged."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a bundle is from its source model, on `PROMPTS` and what the source model writes after them.

    Attributes:
        same_tokens: Greedy tokens that are the same from the start, in the worst prompt.
        new_tokens: Of so many.
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


class BundleModel:
    """A bundle, seen as a `Model`: prompts go through the prefill path, `greedy` through the decode path."""

    def __init__(
        self, bundle: Bundle, threads: int | None = None, route: str | None = None, *, gated: bool = False
    ) -> None:
        """Load it; its hashes are not looked at.

        Args:
            bundle: An opened bundle.
            threads: Of the engine; None for the physical cores.
            route: Of a stitched bundle.
            gated: Whether every block is run by the graph with gates, where there is one without them too.

        Raises:
            EngineError: the engine is not installed or refuses the graph.
        """
        from adaptc.runtime.loading import load_rows
        from adaptc.runtime.model.budget import Wish

        if bundle.manifest.graphs[bundle.manifest.reader].decoder is None:
            raise BundleError(f"{bundle.path}: not a decoder; there is nothing to compare")
        self._decoder = load_rows(bundle, threads, budget=0.0 if gated else 1.0)
        self._wish = Wish(budget=1.0, route=route)
        self.max_tokens = self._decoder.spec.max_tokens

    def logits(self, ids: Ids) -> Logits:
        """See `Model`."""
        return np.concatenate([part.copy() for part in self._decoder.score(ids, len(ids), self._wish)])

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """See `Model`."""
        logits = self._decoder.start(0, np.array(prompt, np.int64), self._wish)
        ids = [int(logits.argmax())]
        while len(ids) < new_tokens:
            ids.append(int(self._decoder.decode(ids[-1:])[0].argmax()))
        return ids

    def close(self) -> None:
        """Free the engine and the cache."""
        self._decoder.close()


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


def worst(found: Sequence[Parity]) -> Parity:
    """Of several comparisons of the same prompts, the worst of each figure; a NaN stays one."""
    return Parity(
        min(each.same_tokens for each in found),
        found[0].new_tokens,
        float(np.max([each.max_logit_error for each in found])),
        float(np.max([each.mean_kl for each in found])),
        float(np.min([each.top1_agreement for each in found])),
        found[0].positions,
    )


def faults(parity: Parity, limits: Limits) -> list[str]:
    """What is outside the limits, in words; empty if nothing is."""
    found = []
    if parity.same_tokens < limits.same_tokens:
        found.append(f"{parity.same_tokens} greedy tokens are the same, {limits.same_tokens} must be")
    # Written so that a NaN fails.
    if limits.max_logit_error is not None and not parity.max_logit_error <= limits.max_logit_error:
        found.append(f"a logit is off by {parity.max_logit_error:.2g}, at most {limits.max_logit_error:g} may be")
    if not parity.mean_kl <= limits.mean_kl:
        found.append(f"mean KL is {parity.mean_kl:.3g} nats, at most {limits.mean_kl:g} may be")
    return found


def prompts_of(bundle: Bundle) -> list[list[int]]:
    """`PROMPTS` as the bundle's token ids.

    Raises:
        BundleError: it has no tokenizer.
    """
    from adaptc.runtime.text.tokenizer import Tokenizer

    folder = bundle.path / "tokenizer"
    if not folder.exists():
        raise BundleError(f"{bundle.path}: no tokenizer; the numbers cannot be compared")
    tokenizer = Tokenizer(folder)
    return [tokenizer.encode(prompt) for prompt in PROMPTS]


def parity_of(bundle: Bundle, base: Path, threads: int | None = None) -> Parity:
    """Compare a bundle with its source model, run by torch in float32.

    Args:
        bundle: An opened bundle of one model.
        base: The folder that paths in its spec start from.
        threads: Of both.

    Raises:
        LoadError: the source model is not there or has changed, or torch is missing.
        EngineError: the bundle cannot be run.
    """
    from adaptc.evaluation.reference import Reference, source_of

    prompts = prompts_of(bundle)
    return _parity(bundle, None, Reference(source_of(bundle, base), "float32", threads), prompts, threads)


def routes_parity(
    bundle: Bundle, base: Path, routes: Sequence[str], threads: int | None = None, stage: Stage = lambda _: None
) -> dict[str, Parity]:
    """Compare routes of a stitched bundle with the layers and stitches they are made of, run by torch in float32.

    Args:
        bundle: An opened bundle.
        base: As for `parity_of`.
        routes: Which.
        threads: Of both.
        stage: Told what is done.

    Raises:
        LoadError: as `parity_of`.
        EngineError: as `parity_of`.
        RequestError: there is no such route.
    """
    from adaptc.evaluation.route_reference import Stitched

    prompts = prompts_of(bundle)
    reference = Stitched.of(bundle, base, threads, stage)
    found = {}
    for route in routes:
        stage(f"route {route}")
        found[route] = _parity(bundle, route, reference.route(route), prompts, threads)
    return found


def _parity(
    bundle: Bundle, route: str | None, reference: Model, prompts: Sequence[Sequence[int]], threads: int | None
) -> Parity:
    twins = any(gates.dense for gates in bundle.manifest.gates.values())
    found = []
    for gated in (False, True) if twins else (False,):
        model = BundleModel(bundle, threads, route, gated=gated)
        try:
            room = model.max_tokens - NEW_TOKENS
            if room < 1:
                raise BundleError(f"{bundle.path}: holds {model.max_tokens} tokens; too few to compare")
            found.append(compare(model, reference, [prompt[:room] for prompt in prompts]))
        finally:
            model.close()
    return worst(found)


def _kl(p: Logits, q: Logits) -> npt.NDArray[np.float64]:
    """KL(softmax p || softmax q) of each row; float64, as differences of near equal numbers are summed."""
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    found: npt.NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(1)
    return found


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return found


def _same_start(a: Sequence[int], b: Sequence[int]) -> int:
    return next((index for index, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
