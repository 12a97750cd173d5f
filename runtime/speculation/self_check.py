"""Does this machine verify to the same end as it writes? Compared bit by bit, and timed, before anything is drafted.

What a kernel rounds may depend on how many rows it is given, and that on the processor. Where it does, drafted tokens
would change answers, so none are drafted there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from adaptc.runtime.model.decoder import BatchDecoder, Ids
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.model.verifier import Verifier

CLOSE = 1e-3
"""Logits of a step and of a verification may differ by this much, if all that is kept for later tokens is equal: then
a token that is as near to the next one as that is computed again."""

_SAFETY = 8.0
"""Tokens are computed again that are nearer than so many times the difference that was measured."""

_CONTEXT = 24
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
    seconds: dict[int, float] = {}
    alone, times = [], []
    for token in rest:
        began = clock()
        logits = decoder.decode([token])[0]
        times.append(clock() - began)
        alone.append(logits.copy())
    seconds[1] = float(np.median(times[1:] or times))
    kept, widest = verifier.digest(0, len(prompt)), 0.0
    exact = True
    for count in range(2, len(rest) + 1):
        times = []
        for _ in range(2):
            verifier.rewind(0, len(prompt))
            began = clock()
            first = verifier.verify(0, rest[:count])
            times.append(clock() - began)
        seconds[count] = min(times)
        rows = [*first.logits]
        while len(rows) < len(rest):
            rows += [*verifier.verify(0, rest[len(rows) : len(rows) + count]).logits]
        widest = max(widest, max(float(np.abs(a - b).max()) for a, b in zip(rows, alone, strict=True)))
        exact = exact and verifier.digest(0, len(prompt)) == kept
    decoder.retire(0, np.zeros(0, np.int64), options, 0)
    return SelfCheck(exact and widest <= CLOSE, _SAFETY * widest, seconds)
