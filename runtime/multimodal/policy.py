"""What jobs may choose from: subsets by the table, the modality gate's levels as well, or whichever is worth it.

`auto` begins with a rehearsal: made-up jobs on a made-up clock, once with the table and once with the gate, at the
times that are known. It takes the gate if no more jobs are late with it and they end clearly sooner. Where measured
times move away from those it knew, it compares what the newest jobs cost at their floors with either, and changes its
mind if the other one is clearly cheaper; after each change it waits longer for the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from adaptc.runtime.errors import RequestError
from adaptc.runtime.multimodal.prices import Prices
from adaptc.runtime.multimodal.scheduler import ModalityScheduler
from adaptc.runtime.multimodal.strategy import ModalityOption, Strategies, seconds_of

POLICIES = ("auto", "table", "gate")

CLEARLY = 0.92
"""The gate is taken, and a mind is changed, for at most this share of the other's time."""

NEWEST = 32
"""Jobs whose costs are compared."""

PATIENCE = 64
"""Jobs between two changes of mind; twice as many after each."""

REHEARSED = 40
"""Jobs of a rehearsal."""


def policy_options(options: Sequence[ModalityOption], policy: str) -> tuple[ModalityOption, ...]:
    """The options of a policy.

    Raises:
        RequestError: there is no such policy, or no modality gate.
    """
    if policy not in POLICIES:
        raise RequestError(f"policy: no {policy!r}; there are: {', '.join(POLICIES)}")
    table = tuple(option for option in options if option.level is None)
    if policy == "gate" and len(table) == len(options):
        raise RequestError("policy: gate: this bundle has no modality gate; table and auto are right")
    return table if policy == "table" else tuple(options)


class JobPolicy:
    """Picks the plans that a job may choose from.

    Attributes:
        chosen: "table" or "gate".
        changes: How many times `auto` changed its mind.
    """

    def __init__(self, options: Sequence[ModalityOption], policy: str, most: int, prices: Prices) -> None:
        """Solve for the plans of small jobs; `auto` rehearses, if there is a gate.

        Args:
            options: All that fit a kind of job; the table's first.
            policy: One of `POLICIES`.
            most: The largest number of requests in a job.
            prices: What plans cost here and now.

        Raises:
            RequestError: see `policy_options`.
        """
        self.changes = 0
        self._prices = prices
        every, table = policy_options(options, policy), policy_options(options, "table")
        self._ways: dict[str, Strategies] = {}
        if policy != "gate":
            self._ways["table"] = Strategies(table, most)
        if len(every) > len(table):
            self._ways["gate"] = Strategies(every, most)
        self._newest: deque[tuple[int, float]] = deque(maxlen=NEWEST)
        self._known = prices.version
        self._wait = self._patience = PATIENCE
        self.chosen = next(iter(self._ways))
        if len(self._ways) > 1:
            self.chosen = rehearsed(self._ways["table"], self._ways["gate"])

    def strategies(self, size: int, floor: float) -> Strategies:
        """The plans for a new job.

        Args:
            size: Its requests, from 1.
            floor: Its least average accuracy, 0 to 1.
        """
        if len(self._ways) > 1:
            self._newest.append((size, floor))
            self._wait -= 1
            if self._wait <= 0 and self._prices.version != self._known:
                self._known = self._prices.version
                self._reconsider()
        return self._ways[self.chosen]

    def solve(self, size: int) -> None:
        """Solve for a size, if it is not yet: up to seconds for the largest."""
        for ways in self._ways.values():
            if 1 <= size <= ways.most:
                ways.arrays(size)

    def _reconsider(self) -> None:
        other = "table" if self.chosen == "gate" else "gate"
        costs = {name: self._cost(ways) for name, ways in self._ways.items()}
        if costs[other] < CLEARLY * costs[self.chosen]:
            self.chosen = other
            self.changes += 1
            self._patience *= 2
            self._wait = self._patience

    def _cost(self, ways: Strategies) -> float:
        """Seconds of the newest jobs at their floors, alone, over the machine's pace."""
        return sum(self._prices.plans(ways, size, floor)[0].seconds for size, floor in self._newest)


def rehearsed(table: Strategies, gate: Strategies) -> str:
    """Whether made-up jobs do better with the table or the gate, by the profile's times: "table" or "gate"."""
    whole = max(table.options, key=lambda option: (option.accuracy, option.seconds[-1]))
    random = np.random.default_rng(0)
    most = min(48, table.most)
    sizes = random.integers(min(8, most), most + 1, REHEARSED)
    floors = whole.accuracy - random.uniform(0.005, 0.01, REHEARSED)
    slack = random.uniform(2, 8, REHEARSED) * [seconds_of(whole, int(size)) for size in sizes]
    busy = sum(table.best(int(size), float(floor)).seconds for size, floor in zip(sizes, floors, strict=True))
    coming = np.cumsum(random.exponential(busy / REHEARSED / 0.8, REHEARSED))
    noise = np.exp(random.normal(0, 0.3, 64))
    jobs = list(zip(coming.tolist(), sizes.tolist(), floors.tolist(), slack.tolist(), strict=True))
    late, ended = zip(*(rehearse(ways, jobs, noise.__getitem__) for ways in (table, gate)), strict=True)
    return "gate" if late[1] <= late[0] and ended[1] < CLEARLY * ended[0] else "table"


def rehearse(
    ways: Strategies, jobs: Sequence[tuple[float, int, float, float]], noise: Callable[[int], float]
) -> tuple[int, float]:
    """Run jobs on a clock of their own.

    Args:
        ways: The plans to choose from.
        jobs: When each comes, its requests, its floor, and the seconds to its deadline.
        noise: What the time of a batch is multiplied by, by its number modulo 64.

    Returns:
        How many are late, and their mean seconds to completion.
    """
    schedule = ModalityScheduler(max(len(option.seconds) for option in ways.options))
    clock, batches = 0.0, 0
    done: dict[int, float] = {}
    waiting = deque(enumerate(jobs))
    while waiting or len(schedule):
        while waiting and waiting[0][1][0] <= clock:
            name, (came, size, floor, slack) = waiting.popleft()
            schedule.add(name, size, floor, came + slack, ways)
        batch = schedule.next(clock)
        if batch is None:
            clock = waiting[0][1][0]
            continue
        seconds = batch.option.seconds[len(batch.rows) - 1] * noise(batches % 64)
        clock, batches = clock + seconds, batches + 1
        done |= dict.fromkeys(schedule.done(batch, clock, seconds), clock)
    took = [done[name] - jobs[name][0] for name in done]
    return sum(done[name] > jobs[name][0] + jobs[name][3] for name in done), float(np.mean(took))
