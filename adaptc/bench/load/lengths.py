"""How long prompts and answers are: a distribution of numbers of tokens."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from adaptc.errors import RequestError
from adaptc.runtime.validation import shown

FORMS = "N, LEAST-MOST (each as likely), or MEAN~DEVIATION (log-normal)"

_FORM = re.compile(r"(\d{1,7})(?:([-~])(\d{1,7}))?\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of lengths, in tokens.

    Attributes:
        low: The least, or the mean of a log-normal one; at least 1.
        high: The largest; None for a log-normal one.
        deviation: Standard deviation of a log-normal one.
    """

    low: int
    high: int | None
    deviation: float = 0.0

    def draw(self, random: np.random.Generator) -> int:
        """A length, at least 1."""
        if self.high is not None:
            return int(random.integers(self.low, self.high + 1))
        spread = math.log1p((self.deviation / self.low) ** 2)
        return max(1, round(float(random.lognormal(math.log(self.low) - spread / 2, math.sqrt(spread)))))


def parse_lengths(name: str, text: str) -> Lengths:
    """What an option of a dataset says of lengths.

    Raises:
        RequestError: naming the option: it is none of `FORMS`.
    """
    found = _FORM.match(text)
    if found is not None and int(found[1]) >= 1:
        low, second = int(found[1]), int(found[3] or found[1])
        if found[2] == "~":
            return Lengths(low, None, second)
        if second >= low:
            return Lengths(low, second)
    raise RequestError(f"{name}: {shown(text)}; {FORMS} is needed, each 1 or more")
