"""Whoever waits for a request does the work: requests share the decoder, and their callers share its driving.

Nothing runs in the background. A caller that needs a token, or the end of its request, becomes the *driver*: it runs
the scheduler's steps, which bring all requests forward, until it has what it needs. Others wait meanwhile and take over
when it is done. What a step brings a request that nobody reads is kept for its reader.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Literal

from adaptc.runtime.errors import RequestError
from adaptc.runtime.generation.scheduler import Scheduler
from adaptc.runtime.generation.work import Work
from adaptc.runtime.process import Home

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from concurrent.futures import ThreadPoolExecutor

Cut = Literal["cancelled", "deadline"]

_LOOK_AGAIN_SECONDS = 0.05  # a waiting thread is woken; this is for a wake-up that a signal handler's exception cut off


class Turn:
    """One request: the sequences that it has written, or the text that it has read.

    Attributes:
        work: What the scheduler runs for it.
        ended: No step follows.
        began: Whether it was given to the scheduler.
        cut: Why it ended before its work did; None if it did not.
        error: What ended it; whoever made the request raises it.
        ends_at: Time of the clock of `Turns` at which it is cut; None for never.
    """

    def __init__(self, work: Sequence[Work], ends_at: float | None = None) -> None:
        """Begin with nothing done.

        Args:
            work: See the attribute.
            ends_at: See the attribute.
        """
        self.work = work
        self.ended = not work
        self.began = False
        self.cut: Cut | None = None
        self.error: Exception | None = None
        self.ends_at = ends_at
        for each in work:
            each.owner = self

    def settle(self) -> None:
        """Take note of the end of its work; an error of one sequence ends the others."""
        if self.ended:
            return
        failed = next((each for each in self.work if each.error is not None), None)
        if failed is not None:
            self.error, self.cut = failed.error, "cancelled" if failed.cancelled else None
            self._end_work()
        elif all(each.ended for each in self.work):
            self.ended = True

    def check(self) -> None:
        """Raise the error that ended the turn, if one did."""
        if self.error is not None:
            raise self.error

    def end_if_late(self, now: float) -> bool:
        """Cut the turn if its time is over; whether that was so."""
        late = not self.ended and self.ends_at is not None and now >= self.ends_at
        if late:
            self.end("deadline")
        return late

    def end(self, cut: Cut, error: RequestError | None = None) -> None:
        """Cut the turn, unless it has ended; needs no lock, so that finalizers may call it."""
        if not self.ended:
            self.cut, self.error = cut, error
            self._end_work()

    def _end_work(self) -> None:
        self.ended = True
        for each in self.work:
            each.cancelled = True


@dataclass(frozen=True, slots=True, eq=False)
class _Driver:
    thread: int


@dataclass(frozen=True, slots=True, eq=False)
class _Listener:
    """A coroutine that waits."""

    turn: Turn
    until: Callable[[], object]
    loop: AbstractEventLoop
    future: Future[None]

    def tell(self) -> None:
        try:
            self.loop.call_soon_threadsafe(_wake, self.future)
        except RuntimeError:  # the loop is closed, and its coroutines never go on
            self.turn.end("cancelled")


def _wake(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Turns:
    """Who drives the scheduler, and when the decoder may be freed."""

    def __init__(self, scheduler: Scheduler, free: Callable[[], None], clock: Callable[[], float] = monotonic) -> None:
        """Start without requests.

        Args:
            scheduler: Runs the work of all turns.
            free: Called once, after `close`, when no step is running.
            clock: Seconds, for deadlines.
        """
        self.clock = clock
        self._home = Home()
        self._free: Callable[[], None] | None = free
        self._scheduler = scheduler
        self._turns: list[Turn] = []  # those that have begun and may not have ended, in the order of their beginnings
        # A signal handler may come in at any place. So its thread may take the lock again, and the lock itself is
        # entered: an exception in a condition's `__enter__`, which is not written in C, would leave it locked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._driver: _Driver | None = None
        self._waiting = 0
        self._listeners: list[_Listener] = []
        self._worker: ThreadPoolExecutor | None = None  # drives for coroutines
        self._working = False
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def live(self) -> list[Turn]:
        """The turns that have begun and not ended, in their order."""
        return [turn for turn in tuple(self._turns) if not turn.ended]

    def drive(self, turn: Turn, until: Callable[[], object] = lambda: False) -> None:
        """Wait for a condition, working meanwhile; at the first call the turn is given to the scheduler.

        Args:
            turn: The caller's.
            until: The condition; the end of the turn is enough too.

        Raises:
            RequestError: the session is closed or of another process, or this thread is in the middle of a step.
        """
        if until() or turn.ended:
            return
        self._home.check("session")
        with self._lock:
            self._enter(turn)
        self._drive(lambda: until() or turn.ended, turn)

    async def drive_in_thread(self, turn: Turn, until: Callable[[], object] = lambda: False) -> None:
        """Wait as `drive` does without blocking the loop; a thread of the session works meanwhile.

        Raises:
            RequestError: the session is closed or of another process.
        """
        import asyncio

        self._home.check("session")
        while not (until() or turn.ended):
            loop = asyncio.get_running_loop()
            listener = _Listener(turn, until, loop, loop.create_future())
            with self._lock:
                self._enter(turn)
                self._listeners.append(listener)
                self._start_worker()
            try:
                await listener.future
            finally:
                with self._lock:
                    if listener in self._listeners:
                        self._listeners.remove(listener)

    def close(self) -> None:
        """End every turn and let none begin; free the decoder now, or after the step that is running.

        A fork frees nothing: what it has is a copy, and what would free it waits for threads that it has not.
        """
        if self._home.left:
            self._closed = True
            return
        with self._lock:
            self._closed = True
            for turn in self._turns:
                turn.end("cancelled", RequestError("session: closed"))
            self._turns.clear()
            worker, self._worker = self._worker, None
        self._announce()
        if worker is not None:
            worker.shutdown(wait=False)
        self._free_now()

    def _enter(self, turn: Turn) -> None:
        """Check that a caller may wait here, and give its turn to the scheduler if it is new."""
        driver = self._driver
        if self._closed:
            raise RequestError("session: closed")
        if driver is not None and driver.thread == threading.get_ident():
            raise RequestError("session: this thread is in the middle of a step; a signal handler cannot use a session")
        if not turn.began:
            turn.began = True
            self._turns.append(turn)
            self._scheduler.add(turn.work)

    def _drive(self, until: Callable[[], object], mine: Turn | None = None) -> None:
        """Run steps until a condition holds, unless another driver's steps fulfil it.

        An exception may come at any place, from a signal handler. The interpreter looks for signals after calls, so
        none comes between `finally` and the line below it.
        """
        me = _Driver(threading.get_ident())
        try:
            with self._lock:
                if not self._wait(until):
                    return
                self._driver = me
            while not until():
                self._step(mine)
        finally:
            if self._driver is me:
                self._driver = None
            self._announce()
            if self._closed:
                self._free_now()

    def _wait(self, until: Callable[[], object]) -> bool:
        """Wait for the condition or until nobody drives; whether the latter came first."""
        self._waiting += 1
        try:
            while not until():
                if self._driver is None:
                    return True
                self._changed.wait(_LOOK_AGAIN_SECONDS)
                if self._cut_late():
                    self._announce()
            return False
        finally:
            self._waiting -= 1

    def _step(self, mine: Turn | None) -> None:
        """Run one step, and tell those who wait for what it brought."""
        try:
            self._scheduler.step(self._cut_late)
        except Exception as error:
            # A signal handler of this thread may have raised it. The thread that works for coroutines runs none.
            if mine is not None and not any(each.error is error for each in mine.work):
                raise
        finally:
            with self._lock:
                for turn in self._turns:
                    turn.settle()
                self._turns = [turn for turn in self._turns if not turn.ended]
            if self._waiting or self._listeners:
                self._announce()

    def _cut_late(self) -> bool:
        """Cut the turns whose time is over; whether there was one."""
        late = [each for each in tuple(self._turns) if each.ends_at is not None and each.end_if_late(self.clock())]
        return bool(late)

    def _announce(self) -> None:
        """Wake all who wait."""
        with self._lock:
            self._changed.notify_all()
            for listener in tuple(self._listeners):
                if listener.until() or listener.turn.ended:
                    self._listeners.remove(listener)
                    listener.tell()

    def _start_worker(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "adaptc-session")
        if not self._working:
            self._working = True
            self._worker.submit(self._work)

    def _work(self) -> None:
        """Drive for coroutines until none waits."""
        while True:
            self._drive(lambda: not self._listeners)
            with self._lock:
                if not self._listeners:
                    self._working = False
                    return

    def _free_now(self) -> None:
        """Free the decoder if nobody drives; whoever does will."""
        with self._lock:
            if self._driver is not None:
                return
            free, self._free = self._free, None
        if free is not None:
            free()
