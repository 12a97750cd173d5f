"""Does this machine verify to the same end as it writes? Compared bit by bit, and timed, before anything is drafted.

What a kernel rounds may depend on how many rows it is given, and that on the processor. Where it does, drafted tokens
would change answers, so none are drafted there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from adaptc.runtime.model.decoder import BatchDecoder, Ids, Logits
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.model.verifier import Verifier

CLOSE = 1e-3
"""Logits of a step and of a verification may differ by this much, if all that is kept for later tokens is equal: then
a token that is as near to the next one as that is computed again."""

_SAFETY = 8.0
"""Tokens are computed again that are nearer than so many times the difference that was measured."""

_CONTEXT = 24
_TURNS = 3
_DENSE = RequestOptions(budget=1.0)


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """What was measured.

    Attributes:
        exact: Whether a verification leaves the very cache that steps leave, and logits that are close enough.
        close: The difference between the logits of two tokens below which both are computed again; 0 if all are equal.
        seconds: Of a run that reads so many tokens of one sequence; 1 is a plain step.
    """

    exact: bool
    close: float
    seconds: dict[int, float]


def self_check(
    decoder: BatchDecoder, verifier: Verifier, ids: Ids | None = None, clock: Callable[[], float] = perf_counter
) -> SelfCheck:
    """Compare and time steps and verifications in the first slot, whose sequence is lost.

    Args:
        decoder: Runs the model.
        verifier: The same.
        ids: int64 [tokens], any text; None takes tokens from all over the vocabulary.
        clock: Seconds.

    Raises:
        EngineError: the engine failed.
    """
    options = _DENSE if decoder.takes_budget else RequestOptions()
    length = min(_CONTEXT + verifier.verifiable(options), decoder.spec.max_tokens)
    most = min(verifier.verifiable(options), length - 1)  # the prompt has a token at least
    if most < 1:  # nothing is ever drafted
        return SelfCheck(True, 0.0, {1: 1.0})
    if ids is None:
        ids = np.arange(1, length + 1, dtype=np.int64) * 7919 % decoder.spec.vocab_size
    prompt, rest = ids[: length - most], [int(token) for token in ids[length - most : length]]
    decoder.start(0, prompt, options)
    alone = [decoder.decode([token])[0].copy() for token in rest]
    kept, widest, exact = verifier.digest(0, len(prompt)), 0.0, True
    for count in range(2, len(rest) + 1):
        verifier.rewind(0, len(prompt))
        rows = [*_verified(verifier, rest, count)]
        widest = max(widest, max(float(np.abs(a - b).max()) for a, b in zip(rows, alone, strict=True)))
        exact = exact and verifier.digest(0, len(prompt)) == kept
    seconds = _timed(decoder, verifier, len(prompt), rest, clock)  # all graphs have run by now
    decoder.retire(0, np.zeros(0, np.int64), options, 0)
    return SelfCheck(exact and widest <= CLOSE, _SAFETY * widest, seconds)


def _verified(verifier: Verifier, tokens: Sequence[int], count: int) -> Iterator[Logits]:
    """The logits after each of some tokens, which are added `count` at a time."""
    for start in range(0, len(tokens), count):
        yield from verifier.verify(0, tokens[start : start + count]).logits


def _timed(
    decoder: BatchDecoder, verifier: Verifier, start: int, tokens: Sequence[int], clock: Callable[[], float]
) -> dict[int, float]:
    """Seconds of a plain step and of verifications of each size after `start` tokens; in turns, as others work too."""
    seconds: dict[int, float] = {}
    for _ in range(_TURNS):
        for count in range(1, len(tokens) + 1):
            verifier.rewind(0, start)
            began = clock()
            if count == 1:
                decoder.decode(tokens[:1])
            else:
                verifier.verify(0, tokens[:count])
            seconds[count] = min(seconds.get(count, np.inf), clock() - began)
    for count in range(len(tokens) - 1, 0, -1):  # fewer tokens take no longer than more do
        seconds[count] = min(seconds[count], seconds[count + 1])
    return seconds
