"""What a scheduler's steps take, and what its load controller is told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter

from adaptc.runtime.generation.load_control import LoadController, StepLoad
from adaptc.runtime.generation.sequence import TokenSequence
from adaptc.runtime.generation.work import Work

_KEPT = 0.9
"""Of the mean time of a step, when another one is added."""


class StepWatch:
    """Times steps; one thread at a time calls it.

    Attributes:
        clock: Seconds.
        step_seconds: Mean time of a step lately; 0 before the first one.
    """

    def __init__(self, control: LoadController | None = None, clock: Callable[[], float] = perf_counter) -> None:
        """Begin before the first step.

        Args:
            control: Lowers budgets under load; None lowers none.
            clock: Seconds.
        """
        self.clock = clock
        self.step_seconds = 0.0
        self._control = control
        self._work: list[Work] = []
        self._new: list[TokenSequence] = []
        self._began = 0.0
        self._idle_since: float | None = None  # end of the newest step, if it left none
        self._wrote_at: float | None = None  # end of the newest step, if somebody waits for the next token

    @property
    def ceiling(self) -> float:
        """The most that any budget counts for, 0 to 1."""
        return 1.0 if self._control is None else self._control.ceiling

    @property
    def pressure(self) -> float:
        """See `LoadController`; 0 without one."""
        return 0.0 if self._control is None else self._control.pressure

    def begin(self, work: Callable[[], Iterable[Work]]) -> None:
        """Note the begin of a step.

        Args:
            work: All work that there is; asked only if load is controlled.
        """
        self._began = self.clock()
        if self._control is not None:
            self._work = list(work())
            self._new = _new(self._work)

    def end(
        self, running: Callable[[], list[Work]], waiting: Callable[[], list[Work]], wrote: bool, goes_on: bool
    ) -> None:
        """Note the end of the step.

        Args:
            running: Work that has a slot now; asked only if load is controlled.
            waiting: Work that waits for one, without what nobody reads; likewise.
            wrote: Whether the step added tokens to sequences.
            goes_on: Whether one of these waits for its next token.
        """
        now = self.clock()
        took = now - self._began
        self.step_seconds = _KEPT * self.step_seconds + (1 - _KEPT) * took if self.step_seconds else took
        if self._control is not None:
            self._tell(self._control, now, running(), waiting(), wrote)
            self._wrote_at = now if wrote and goes_on else None

    def _tell(self, control: LoadController, now: float, running: list[Work], waiting: list[Work], wrote: bool) -> None:
        new = {*self._new, *_new(running), *_new(waiting)}
        control.observe(
            StepLoad(
                now=now,
                idle=0.0 if self._idle_since is None else self._began - self._idle_since,
                between=now - self._wrote_at if wrote and self._wrote_at is not None else None,
                waiting=len(waiting),
                longest_wait=max((_wait(each, now) for each in new if each.ids or not each.ended), default=0.0),
                ended=sum(each.done for each in self._work),
            )
        )
        self._idle_since = None if running or waiting else now


def _new(work: Iterable[Work]) -> list[TokenSequence]:
    """Those that have no token yet."""
    return [each for each in work if isinstance(each, TokenSequence) and not each.ids]


def _wait(sequence: TokenSequence, now: float) -> float:
    """How long a sequence waited for its first token, or has by now."""
    return sequence.time_to_first_token_seconds if sequence.ids else now - sequence.began
