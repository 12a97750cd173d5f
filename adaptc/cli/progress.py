"""How long work shows itself on stderr: a line that changes on a terminal, a few plain lines in a log.

⠋ [7/23] gptq  ━━━━━━━━━━━╸━━━━━━━━  120/211  0:00:21, about 16 s left
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

import click

from adaptc.runtime.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console

QUIET_FOR = 2.0
"""Seconds before the first line in a log: what is over by then needs none."""

LINES_EVERY = 10.0
"""Seconds between two lines about one stage in a log, at least."""

OF_ELAPSED = 0.05
"""The same as a part of the time since the start, where that is more: hours of work leave tens of lines."""

SPEED_OVER = 30.0
"""Seconds over which the speed of steps is measured: later ones may take longer than those before."""

SHORT = 0.1
"""Seconds; a stage that took less leaves no line on a terminal."""


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """What a command hands to the work it starts. Nothing is shown after `adaptc --quiet`."""
    if click.get_current_context().find_root().params.get("quiet"):
        yield SILENT
        return
    from rich.console import Console

    console = Console(stderr=True)
    with _live(console) if console.is_terminal else _logged() as progress:
        yield progress


class Speed:
    """Measures steps and says how long those to come will take."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def left(self, done: int, total: int, now: float) -> str:
        """Count steps as done; what is left as a text, or "" while nobody knows.

        Args:
            done: Steps done so far.
            total: Steps in all.
            now: Seconds of a clock.
        """
        self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[1][0] > SPEED_OVER:
            self._marks.popleft()
        began, before = self._marks[0]
        if done >= total or done <= before:
            return ""
        return f"about {duration(max(1.0, (total - done) * (now - began) / (done - before)))} left"


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would say: "8 s", "12 min", "3.5 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


class LogProgress:
    """Plain lines with the seconds since the start: short work says nothing, long work now and then where it is.

    Args:
        say: Prints a line.
        clock: Gives seconds.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock, self._lock = say, clock, Lock()
        self._began, self._told = clock(), 0.0
        self._stage, self._state, self._speed = "", "", Speed()

    def expect(self, stages: int) -> None:
        pass

    def stage(self, name: str) -> None:
        with self._lock:
            self._stage, self._state, self._speed = name, name, Speed()
            if self._told or self._clock() - self._began >= QUIET_FOR:
                self._line(name)

    def step(self, done: int, total: int, note: str = "") -> None:
        with self._lock:
            left = self._speed.left(done, total, self._clock())
            self._state = ", ".join(filter(None, (f"{self._stage}: {done} of {total}", left, note)))

    def tick(self) -> None:
        """Say where the work is, if it is time to; called about once a second."""
        with self._lock:
            now = self._clock()
            wait = max(LINES_EVERY, (now - self._began) * OF_ELAPSED) if self._told else QUIET_FOR
            if self._state and now - (self._told or self._began) >= wait:
                self._line(self._state)

    def end(self) -> None:
        """Say that all is done, if anything was said."""
        with self._lock:
            if self._told:
                self._line("done")

    def _line(self, text: str) -> None:
        self._told = self._clock()
        self._say(f"{self._told - self._began:7.1f} s  {text}")


@contextmanager
def _logged() -> Iterator[Progress]:
    log, stop = LogProgress(partial(click.echo, err=True)), Event()

    def beat() -> None:
        while not stop.wait(1.0):
            log.tick()

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield log
        log.end()
    finally:
        stop.set()
        thread.join()


@contextmanager
def _live(console: Console) -> Iterator[Progress]:
    """A line at the bottom of a terminal; finished stages stay above it with the seconds they took."""
    from rich.markup import escape
    from rich.progress import BarColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Live
    from rich.text import Text

    class StepBar(BarColumn):
        """A bar once the number of steps is known: one that says nothing looks as if all were done."""

        def render(self, task: Task) -> Any:
            return Text("") if task.total is None else super().render(task)

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        StepBar(20),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[more]}[/]"),
    )

    class Terminal:
        def __init__(self) -> None:
            self._stages, self._count, self._stage, self._began = 0, 0, "", 0.0
            self._speed = Speed()
            self._task = live.add_task("", total=None, counts="", more="", visible=False)

        def expect(self, stages: int) -> None:
            self._stages = stages

        def stage(self, name: str) -> None:
            self.end()
            self._stage, self._began, self._speed = name, time.monotonic(), Speed()
            self._count += 1
            place = f"[dim]\\[{self._count}/{self._stages}][/] " if self._count <= self._stages else ""
            live.reset(self._task, total=None, description=place + escape(name), counts="", more="", visible=True)

        def step(self, done: int, total: int, note: str = "") -> None:
            more = ", ".join(filter(None, (self._speed.left(done, total, time.monotonic()), note)))
            counts = f"{done}/{total}"
            live.update(self._task, completed=done, total=total, counts=counts, more=escape(more))

        def end(self) -> None:
            seconds = time.monotonic() - self._began
            if self._stage and seconds >= SHORT:
                console.print(f"[dim]{seconds:6.1f} s[/]  {escape(self._stage)}", highlight=False)

    # Few refreshes: they must not disturb what is being timed.
    with Live(*columns, console=console, transient=True, refresh_per_second=4) as live:
        terminal = Terminal()
        yield terminal
        terminal.end()
