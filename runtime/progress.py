"""What long work tells whoever waits for it: which stage it is in, and how far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Who is told. What runs long takes one as an argument, tells it and never asks it anything."""

    def expect(self, stages: int) -> None:
        """Say how many stages there are at most, counted from the first."""

    def stage(self, name: str) -> None:
        """Say that a stage begins; the one before it has ended."""

    def step(self, done: int, total: int, note: str = "") -> None:
        """Say how far this stage is.

        Args:
            done: Steps that are done, 0 to `total`. Telling 0, or what was found done already, lets time be measured
                from the first step on.
            total: Steps of this stage.
            note: What the last steps measured, such as a loss; for people.
        """


@dataclass(frozen=True, slots=True)
class Silent:
    """Tells nobody."""

    def expect(self, stages: int) -> None:
        pass

    def stage(self, name: str) -> None:
        pass

    def step(self, done: int, total: int, note: str = "") -> None:
        pass


SILENT = Silent()


def counted(items: Sequence[T], progress: Progress) -> Iterator[T]:
    """Yield items, and tell after each how many are done."""
    progress.step(0, len(items))
    for done, item in enumerate(items, 1):
        yield item
        progress.step(done, len(items))
