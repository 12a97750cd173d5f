"""When requests come: times that are drawn before the run, so that no answer can delay them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from adaptc.errors import RequestError
from adaptc.runtime.validation import shown

KINDS = "poisson, constant, gamma:SHAPE (below 1 comes in clusters, 1 is poisson), bursts:SIZE"


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How callers come.

    Attributes:
        kind: "poisson", "constant", "gamma" or "bursts".
        figure: Shape of the gaps' gamma distribution, above 0, or the number of callers that come at once, at least 1;
            without a meaning for other kinds.
    """

    kind: str = "poisson"
    figure: float = 1.0

    def times(self, rate: float, random: np.random.Generator) -> Iterator[float]:
        """Times in seconds from the start, without an end, in order.

        Args:
            rate: Callers a second on average, above 0.
            random: Draws the gaps.
        """
        if self.kind == "constant":
            yield from (place / rate for place in count())
        size = int(self.figure) if self.kind == "bursts" else 1
        shape = self.figure if self.kind == "gamma" else 1.0
        now = 0.0
        while True:
            now += float(random.gamma(shape, size / (rate * shape)))
            yield from [now] * size


def parse_arrivals(text: str) -> Arrivals:
    """What `--arrivals` says.

    Raises:
        RequestError: it is none of `KINDS`.
    """
    kind, _, figure = text.partition(":")
    if kind in {"poisson", "constant"} and not figure:
        return Arrivals(kind)
    try:
        number = float(figure)
    except ValueError:
        number = 0.0
    if kind == "gamma" and 0 < number < 1e6:
        return Arrivals(kind, number)
    if kind == "bursts" and 1 <= number < 1e6 and number.is_integer():
        return Arrivals(kind, number)
    raise RequestError(f"--arrivals: {shown(text)}; one of these is needed: {KINDS}")
