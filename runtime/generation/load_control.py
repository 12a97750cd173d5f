"""Load control: budgets go down while a session is too slow for its targets, and up again when it is not.

A session that has targets caps the budget of its requests with a *ceiling*, each down to the request's own floor. The
ceiling follows the *pressure*, the larger of two times as shares of what lowers budgets, less than the targets:

- the time between two tokens, averaged over about a second;
- the time that a request which came now would wait for its first token: as many waiting requests as there are, times
  the mean time in which one ends; and no less than the longest wait of late, of which half is forgotten in a second.

Above `_HIGH` the ceiling falls, the quicker the higher the pressure is; below `_LOW` it rises by a step, after a while;
between the two it stays, so that a steady load finds a steady ceiling. A rise that brings the pressure back doubles the
while, as one that does not halves it: so a load which needs a low ceiling is tried again ever less often.
"""

from __future__ import annotations

from dataclasses import dataclass

from adaptc.runtime.errors import RequestError
from adaptc.runtime.model.budget import check_budget
from adaptc.runtime.validation import check_seconds, shown

_FIRST, _NEXT = 0.5, 0.9
"""Shares of a target where budgets begin to fall. Times vary around their mean, and a queue takes its time to drain."""

_HIGH, _LOW = 1.0, 0.6
"""The pressure above which the ceiling falls, and below which it rises."""

_PERIOD = 0.1
"""Seconds between two looks at the pressure, at least."""

_FALL = 1.0
"""Of the ceiling in a second, where the pressure is twice `_HIGH` or more; a tenth of it right above."""

_RISE = 1 / 16
"""Of the ceiling in one step up."""

_PATIENCE = (1.0, 30.0)
"""Seconds of low pressure before a rise: the least, and the most."""

_MEMORY = 1.0
"""Seconds after which half of an average is forgotten."""

_ENDS = 8
"""Requests over which the time in which one ends is averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTargets:
    """What a session keeps under load by lowering budgets; one of the two times at least is needed.

    Attributes:
        time_to_first_token: Seconds from a request to its first token, above 0; None for any.
        time_per_output_token: Seconds between two tokens of a sequence, above 0; None for any.
        min_budget: The lowest budget for requests that name neither `budget` nor `min_budget`, 0 to 1.

    Raises:
        RequestError: a value is out of range, or there is no target.
    """

    time_to_first_token: float | None = None
    time_per_output_token: float | None = None
    min_budget: float = 0.5

    def __post_init__(self) -> None:
        if self.time_to_first_token is None and self.time_per_output_token is None:
            raise RequestError("load targets: none; time_to_first_token, time_per_output_token or both are needed")
        for name in ("time_to_first_token", "time_per_output_token"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, check_seconds(name, value))
        object.__setattr__(self, "min_budget", check_budget(self.min_budget, "min_budget"))


def load_targets_of(first: float | None, each: float | None, least: float | None) -> LoadTargets | None:
    """The targets of options that may be left out; None if there is none.

    Args:
        first: `time_to_first_token`.
        each: `time_per_output_token`.
        least: `min_budget`; None for the usual one.

    Raises:
        RequestError: a value is out of range, or a floor stands without a target.
    """
    if first is None and each is None:
        if least is not None:
            raise RequestError(f"min_budget: {shown(least)}; without a target no budget is lowered: leave it out")
        return None
    if least is None:
        return LoadTargets(time_to_first_token=first, time_per_output_token=each)
    return LoadTargets(time_to_first_token=first, time_per_output_token=each, min_budget=least)


@dataclass(frozen=True, slots=True)
class StepLoad:
    """How busy a session was in one step. All times are seconds.

    Attributes:
        now: Time of the end of the step, of any one clock.
        idle: Time before the step in which there was no work.
        between: Time since the step before, if both wrote tokens; None if not.
        waiting: Requests that have no slot yet.
        longest_wait: The longest time to the first token of those that got it in this step, or that those without one
            have waited so far; 0 if there are neither.
        ended: Requests that ended in this step.
    """

    now: float
    idle: float
    between: float | None
    waiting: int
    longest_wait: float
    ended: int


class LoadController:
    """Follows the load of one session.

    Attributes:
        targets: What it keeps.
        ceiling: The most that any budget counts for, 0 to 1; 1 without pressure.
        pressure: The larger of both times as a share of what lowers budgets, from 0: budgets go down above 1.
    """

    def __init__(self, targets: LoadTargets) -> None:
        """Begin without load.

        Args:
            targets: What is to be kept.
        """
        self.targets = targets
        self.ceiling = 1.0
        self.pressure = 0.0
        self._between = self._wait = 0.0
        self._end_takes: float | None = None  # mean seconds from the end of one request to the next, others waiting
        self._since_end = 0.0  # seconds with others waiting
        self._last: float | None = None
        self._looked: float | None = None
        self._calm_since = self._raised = float("-inf")
        self._patience = _PATIENCE[0]

    def observe(self, load: StepLoad) -> None:
        """Take a step into account."""
        passed = 0.0 if self._last is None else load.now - self._last - load.idle
        self._last = load.now
        self._recover(load)
        self._average(load, max(passed, 0.0))
        self.pressure = max(self._first_token(load), self._next_token())
        if self._looked is None:
            self._looked = load.now
        elif load.now - self._looked >= _PERIOD:
            self._adjust(load.now, min(load.now - self._looked, 1.0))
            self._looked = load.now

    def _average(self, load: StepLoad, passed: float) -> None:
        self._wait = max(self._wait * 0.5 ** (passed / _MEMORY), load.longest_wait)
        if load.between is None:
            self._between *= 0.5 ** (passed / _MEMORY)
        else:
            kept = 0.5 ** (load.between / _MEMORY)
            self._between = kept * self._between + (1 - kept) * load.between
        if load.waiting or self._since_end:
            self._since_end += passed
        if load.ended and self._since_end:
            sample, kept = self._since_end / load.ended, (1 - 1 / _ENDS) ** load.ended
            self._end_takes = sample if self._end_takes is None else kept * self._end_takes + (1 - kept) * sample
            self._since_end = 0.0

    def _first_token(self, load: StepLoad) -> float:
        target = self.targets.time_to_first_token
        if target is None:
            return 0.0
        ahead = load.waiting * max(self._end_takes or 0.0, self._since_end)
        return max(ahead, self._wait) / (_FIRST * target)

    def _next_token(self) -> float:
        target = self.targets.time_per_output_token
        return 0.0 if target is None else self._between / (_NEXT * target)

    def _recover(self, load: StepLoad) -> None:
        """Count time without work as calm."""
        if load.idle > self._patience:
            self.ceiling = min(1.0, self.ceiling + _RISE * (load.idle // self._patience))
            self._patience = _PATIENCE[0]
            self._calm_since, self._raised = load.now, float("-inf")
            self._between = self._wait = self._since_end = 0.0
            self._looked = None

    def _adjust(self, now: float, passed: float) -> None:
        if self.pressure > _HIGH:
            if now - self._raised < 2 * self._patience:
                self._patience, self._raised = min(2 * self._patience, _PATIENCE[1]), float("-inf")
            speed = _FALL * min(1.0, 0.1 + (self.pressure - _HIGH) / _HIGH)
            self.ceiling = max(0.0, self.ceiling - speed * passed)
            self._calm_since = now
        elif self.pressure > _LOW:
            self._calm_since = now
        elif self.ceiling < 1 and now - self._calm_since >= self._patience:
            if self._raised > float("-inf"):
                self._patience = max(self._patience / 2, _PATIENCE[0])
            self.ceiling = min(1.0, self.ceiling + _RISE)
            self._calm_since = self._raised = now
