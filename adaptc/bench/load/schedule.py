"""Who comes in a run: drawn from a seed or read from a file, and the same for every server."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice, takewhile

import numpy as np

from adaptc.bench.load.arrivals import Arrivals
from adaptc.bench.load.callers import Caller
from adaptc.bench.load.datasets import Dataset, RandomPrompts
from adaptc.bench.load.lengths import Lengths

_TIMES, _PROMPTS, _WARMUP = range(3)  # what numbers are drawn for


@dataclass(frozen=True, slots=True)
class Schedule:
    """Who comes, and when.

    Attributes:
        dataset: What is asked; its callers come at times of `arrivals`.
        arrivals: How they come.
        rate: Requests a second on average; infinite for callers of whom the next comes when one has ended.
        seconds: How long callers come; None for as long as it takes.
        requests: The number of requests, a last caller's aside; None for as many as come in `seconds`.
        seed: Seed of all that is drawn.
        replay: Callers with times of their own, in place of all of the above but `seconds`.
    """

    dataset: Dataset
    arrivals: Arrivals
    rate: float = math.inf
    seconds: float | None = None
    requests: int | None = None
    seed: int = 0
    replay: tuple[Caller, ...] | None = None

    @property
    def closed(self) -> bool:
        """Whether answers decide when the next caller comes."""
        return self.replay is None and math.isinf(self.rate)

    @property
    def expected(self) -> int | None:
        """About how many requests there will be; None if the server decides."""
        if self.replay is not None:
            return sum(len(caller.requests) for caller in self.callers(0))
        if self.requests is not None:
            return self.requests
        return None if self.closed or self.seconds is None else round(self.rate * self.seconds)

    def callers(self, turn: int) -> Iterator[Caller]:
        """The callers of one turn, in the order of their coming; without an end if only time ends it.

        Args:
            turn: From 0; prompts and times of other turns are others, so that no server knows them from before.
        """
        end = math.inf if self.seconds is None else self.seconds
        if self.replay is not None:
            yield from takewhile(lambda caller: caller.time < end, self.replay)
            return
        turns = self.dataset.turns
        drawn = (self.dataset.caller(place, (self.seed, _PROMPTS, turn)) for place in count())
        if not self.closed:
            random = np.random.default_rng([self.seed, _TIMES, turn])
            times = takewhile(lambda time: time < end, self.arrivals.times(self.rate / turns, random))
            drawn = (_coming_at(time, caller) for time, caller in zip(times, drawn, strict=False))
        yield from islice(drawn, None if self.requests is None else math.ceil(self.requests / turns))

    def warmup(self, place: int) -> Caller:
        """A caller who comes before the run, with a prompt that nobody asks in it."""
        return RandomPrompts(Lengths(8, 24), Lengths(8, 16)).caller(place, (self.seed, _WARMUP))


def _coming_at(time: float, caller: Caller) -> Caller:
    return Caller(tuple(dataclasses.replace(request, time=time) for request in caller.requests))
