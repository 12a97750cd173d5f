"""How long batches and jobs take here and now, learned from those that ran; a profile is only where it begins.

A batch usually takes what the profile says, times what is usual here and now, times what sets its option and its size
apart::

    log seconds = log profiled + usual + apart[option] + apart[option, size]

Each measurement moves all three by a share of its error, which is cut off: one stall moves them little. What stalls add
to the sum of many batches is learned beside them. Options that
have not run for long are forgotten by halves, so that what was slow once is tried again. Plans are priced by a copy
that stays as it is until what was learned has moved away from it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adaptc.runtime.multimodal.strategy import ModalityOption

CUT = 0.7
"""Errors count as at most this much, in logarithms of seconds: a factor of two."""

PARTED = 0.2
"""Plans are priced anew once an option is this far from its price, in logarithms."""

SELDOM = 256
"""Batches that prices stay for at least, once so many ran; pricing costs as much as several small batches."""

HALF_LIFE = 400
"""Batches after which half of what sets an option apart is forgotten, if it did not run."""

FIRST_USE = 0.02
"""Seconds that the first run of a graph takes longer, until one was measured."""

MARGIN = 1.5
"""How much longer than predicted a job may take, until enough of them were measured."""

_QUANTILE, _ENOUGH, _KEPT, _WIDEST, _SURE, _LONG = 0.95, 16, 128, 6.0, 8, 0.98


class _Apart:
    """What sets one option, or one of its sizes, apart."""

    __slots__ = ("at", "runs", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.runs = self.at = 0

    def now(self, batch: int) -> float:
        return self.value * math.pow(2, (self.at - batch) / HALF_LIFE)

    def move(self, error: float, batch: int) -> None:
        self.value = self.now(batch) + error * max(0.05, 0.5 / (self.runs + 2))
        self.runs += 1
        self.at = batch


class MeasuredTimes:
    """Seconds of batches, of what comes around them, of first uses, and of jobs; threads may share it.

    Attributes:
        overhead: Seconds around a batch for deciding, gathering and handing out, over `pace`.
        version: Goes up whenever `seconds` changes, and with every first use.
    """

    def __init__(self) -> None:
        """Start from the profile."""
        self.overhead = 0.0
        self.version = 0
        self._usual = 1.0
        self._spent = self._foretold = 1e-9
        self._batches = self._queued = 0
        self._lock = Lock()
        self._again = _SURE
        self._apart: dict[tuple[str, int], _Apart] = {}
        self._priced: dict[str, tuple[float, ...]] = {}
        self._priced_overhead = 0.0
        self._first: deque[float] = deque(maxlen=_KEPT)
        self._jobs: dict[int, deque[float]] = {}
        self._margins: dict[int, float] = {}
        self._waits: deque[float] = deque(maxlen=_KEPT)

    @property
    def pace(self) -> float:
        """Time that batches take here and now, over their profiled time; above 0.

        It is the usual batch's, which a stall moves little, times what stalls add to the sum of many batches.
        """
        return self._usual * min(2.0, max(1.0, self._spent / self._foretold))

    def seconds(self, option: ModalityOption, *, around: bool = True) -> tuple[float, ...]:
        """Seconds over `pace` of a batch of 1, 2, ... up to the largest, with what comes around it in a queue."""
        if not around:
            return tuple(s - self._priced_overhead for s in self.seconds(option))
        found = self._priced.get(option.name)
        if found is None:
            found = tuple(
                s * math.exp(self._distance(option.name, rows)) + self._priced_overhead
                for rows, s in enumerate(option.seconds, 1)
            )
            self._priced[option.name] = found
        return found

    def first_use(self, graphs: int, guess: float = FIRST_USE) -> float:
        """Seconds that so many graphs take longer when they first run: to be read, and to warm up.

        Args:
            graphs: How many.
            guess: Seconds of one, if none was measured.
        """
        return graphs * (median(self._first) if self._first else guess)

    def record(
        self, option: ModalityOption, rows: int, seconds: float, overhead: float | None = None, first: int = 0
    ) -> None:
        """Learn from a batch.

        Args:
            option: What ran.
            rows: Rows of the batch, from 1.
            seconds: Time that it took, above 0.
            overhead: Further seconds that the queue was busy with it; None if it came by no queue.
            first: Its graphs that ran for the first time.
        """
        with self._lock:
            self._record(option, rows, seconds, overhead, first)

    def _record(self, option: ModalityOption, rows: int, seconds: float, overhead: float | None, first: int) -> None:
        if first:
            expected = self.pace * (self.seconds(option)[rows - 1] - self._priced_overhead)
            self._first.append(max(0.0, seconds - expected) / first)
            self.version += 1
            return
        self._batches += 1
        usual = self._usual * max(option.seconds[rows - 1], 1e-9) * math.exp(self._distance(option.name, rows))
        self._spent = _LONG * self._spent + min(seconds, 8 * usual)
        self._foretold = _LONG * self._foretold + usual
        error = min(CUT, max(-CUT, math.log(max(seconds, 1e-9) / usual)))
        self._usual *= math.exp(error * max(0.15, 1 / (self._batches + 1)))
        for key in ((option.name, 0), (option.name, rows.bit_length())):
            self._apart.setdefault(key, _Apart()).move(error, self._batches)
        if overhead is not None:
            self._queued += 1
            share = max(0.1, 1 / self._queued)
            # A stall counts as no more than three usual ones, once there are usual ones.
            most = 3 * self.overhead + 1e-5 if self._queued > _ENOUGH else math.inf
            self.overhead += share * (min(max(0.0, overhead) / self.pace, most) - self.overhead)
        self._price(option, rows)

    def record_job(self, predicted: float, actual: float) -> None:
        """Learn from a job: seconds that it was predicted to take, and those that it took."""
        kept = self._jobs.setdefault(_magnitude(predicted), deque(maxlen=_KEPT))
        kept.append(actual / max(predicted, 1e-9))
        self._margins.clear()

    def record_wait(self, predicted: float, actual: float) -> None:
        """Learn from an admitted job: seconds predicted when it came, and those it took with all that came after."""
        self._waits.append(actual / max(predicted, 1e-9))

    @property
    def wait(self) -> float:
        """The factor that later jobs, with earlier deadlines or in the same batches, usually put to a prediction."""
        return min(_WIDEST, max(0.25, median(self._waits))) if len(self._waits) >= _ENOUGH else 1.0

    def margin(self, predicted: float) -> float:
        """The factor within which 19 of 20 jobs of such a predicted time ended; 1 to 6.

        It is never less than that of longer times: a stall counts for more of a short one.
        """
        key = _magnitude(predicted)
        if key not in self._margins:
            known = [self._quantile(each) for each in self._jobs if each >= key]
            self._margins[key] = min(_WIDEST, max([1.0, *known])) if known else MARGIN
        return self._margins[key]

    def _quantile(self, key: int) -> float:
        kept = self._jobs[key]
        ordered = sorted([*kept, *[MARGIN] * max(0, _ENOUGH - len(kept))])
        return ordered[int(_QUANTILE * (len(ordered) - 1) + 0.5)]

    def apart(self) -> Mapping[str, float]:
        """How much slower than the machine's pace each option that ran is; 1 is as the profile says."""
        return {name: math.exp(each.now(self._batches)) for (name, size), each in self._apart.items() if not size}

    def _distance(self, name: str, rows: int) -> float:
        option, size = self._apart.get((name, 0)), self._apart.get((name, rows.bit_length()))
        return (option.now(self._batches) if option else 0.0) + (size.now(self._batches) if size else 0.0)

    def _price(self, option: ModalityOption, rows: int) -> None:
        """Price plans anew if this option has moved away from its price, and that was not just done."""
        if self._batches < self._again:
            return
        priced = self.seconds(option)[rows - 1]
        learned = option.seconds[rows - 1] * math.exp(self._distance(option.name, rows)) + self.overhead
        if abs(math.log(learned / priced)) > PARTED:
            self._again = self._batches + min(SELDOM, self._batches)
            self._priced_overhead = self.overhead
            self._priced.clear()
            self.version += 1


def _magnitude(seconds: float) -> int:
    """Predictions are as sure as others of their magnitude: of 1 to 4 ms, of 4 to 16, and so on."""
    return int(math.log(min(max(seconds, 1e-6), 1e6)) / math.log(4) + 100)
