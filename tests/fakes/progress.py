"""A progress that keeps what it was told, and may stop the work like a person who presses Ctrl-C."""

from __future__ import annotations


class Told:
    """What long work told.

    Args:
        stop_at: A stage at which the work is interrupted, or a number of steps after which it is.
    """

    def __init__(self, stop_at: str | int | None = None) -> None:
        self.stages: list[str] = []
        self.steps: list[tuple[str, int, int]] = []
        self.notes: list[str] = []
        self.expected = 0
        self._stop_at = stop_at

    def expect(self, stages: int) -> None:
        self.expected = stages

    def stage(self, name: str) -> None:
        self.stages.append(name)
        if name == self._stop_at:
            raise KeyboardInterrupt

    def step(self, done: int, total: int, note: str = "") -> None:
        stage = self.stages[-1] if self.stages else ""
        self.steps.append((stage, done, total))
        self.notes.append(note)
        if done and done == self._stop_at:
            raise KeyboardInterrupt

    def steps_of(self, stage: str) -> list[tuple[int, int]]:
        """Steps of a stage, as (done, total)."""
        return [(done, total) for name, done, total in self.steps if name == stage]
