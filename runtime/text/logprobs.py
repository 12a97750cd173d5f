"""Record how probable the tokens of a sequence were, and which others were likely."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adaptc.runtime.text.sampling import Logits


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that was chosen.

    Attributes:
        token: Its id.
        logprob: Natural logarithm of its probability, as the model gave it: before penalties, filters and temperature.
        top: (id, logprob) of the most likely tokens, the first first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class LogprobRecord:
    """A `TokenRule` that changes nothing and records every token. It must be the first of the rules of its sequence.

    Attributes:
        tokens: In the order in which they were chosen.
    """

    def __init__(self, top: int) -> None:
        """Begin without tokens.

        Args:
            top: The number of likely tokens to record beside each, from 0.
        """
        self.tokens: list[TokenLogprob] = []
        self._top = top
        self._row: Logits | None = None

    def before(self, logits: Logits) -> None:
        """See `TokenRule.before`."""
        self._row = logits.copy()

    def after(self, token: int) -> None:
        """See `TokenRule.after`."""
        assert self._row is not None
        row, self._row = self._row, None
        total = log_sum(row)
        top = tuple((int(each), float(row[each]) - total) for each in most_likely(row, self._top))
        self.tokens.append(TokenLogprob(token, float(row[token]) - total, top))


def log_sum(row: Logits) -> float:
    """Logarithm of the sum of exp(logits), float32 [vocab]."""
    highest = float(row.max())
    return highest + float(np.log(np.exp(row - np.float32(highest)).sum(dtype=np.float64)))


def most_likely(row: Logits, count: int) -> list[int]:
    """Ids of the `count` highest logits, the highest first; of equal ones the lower id first."""
    count = min(count, len(row))
    if not count:
        return []
    bound = np.partition(row, len(row) - count)[len(row) - count]
    ids = np.flatnonzero(row >= bound)
    order = np.lexsort((ids, -row[ids]))
    found: list[int] = ids[order][:count].tolist()
    return found
