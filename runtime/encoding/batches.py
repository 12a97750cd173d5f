"""Texts of many lengths become batches: those of like length together, so that little is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

MOST_TOKENS = 1024
"""Tokens of a batch, padding included: more are no quicker on a CPU, and their values leave its caches."""

MOST_PADDING = 0.125
"""The largest share of a batch that is padding."""

FEW_TOKENS = 64
"""A batch of fewer tokens is filled up whatever its padding: a run has a cost of its own."""


def batches(lengths: Sequence[int], most_tokens: int = MOST_TOKENS) -> Iterator[npt.NDArray[np.int64]]:
    """Divide texts into batches.

    Args:
        lengths: Tokens of each text.
        most_tokens: Of a batch, padding included; one text may have more.

    Yields:
        The places of a batch's texts, int64 [texts]; each text is in one batch, the longest in the first.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    start = 0
    while start < len(order):
        longest, real, end = lengths[order[start]], 0, start
        while end < len(order):
            own = lengths[order[end]]
            whole = (end - start + 1) * longest
            padding = whole - real - own
            if end > start and (whole > most_tokens or (whole > FEW_TOKENS and padding > MOST_PADDING * whole)):
                break
            real, end = real + own, end + 1
        yield order[start:end]
        start = end
