"""What steps cost on this machine, by how many tokens they read: measured before the first request, and ever after."""

from __future__ import annotations

from collections.abc import Mapping

_KEPT = 0.9
"""Of a mean, when another step is added."""

_MOST = 4.0
"""A step that took longer than so many times the mean met something else, and counts as that many."""

_FORGOTTEN = 0.002
"""Of what is known of runs that read several tokens, at each plain step: what once was dear is tried again."""


class StepCosts:
    """Mean times of steps; one thread at a time calls it."""

    def __init__(self, seconds: Mapping[int, float]) -> None:
        """Begin with what was measured.

        Args:
            seconds: Of a step of one sequence, by the number of tokens that it reads of it; 1 is a plain step.
        """
        self._seconds = dict(seconds)
        self._plain: dict[int, float] = {1: self._seconds[1]}
        self._at_first = {tokens: each / self._seconds[1] for tokens, each in seconds.items()}  # plain steps are 1

    def reading(self, tokens: int) -> float:
        """Seconds of a run that reads so many tokens of one sequence; those of the next larger one that is known."""
        known = [size for size in self._seconds if size >= tokens]
        return self._seconds[min(known) if known else max(self._seconds)]

    def plain(self, sequences: int) -> float | None:
        """Seconds of a step that adds one token to each of some sequences; None if none was seen."""
        return self._plain.get(sequences)

    def note_reading(self, tokens: int, seconds: float) -> None:
        """Take note of a run that read several tokens of one sequence."""
        self._seconds[tokens] = _mean(self._seconds.get(tokens, seconds), seconds)

    def note_plain(self, sequences: int, seconds: float) -> None:
        """Take note of a step that added a token to each of some sequences."""
        self._plain[sequences] = _mean(self._plain.get(sequences, seconds), seconds)
        if sequences == 1:
            self._seconds[1] = self._plain[1]
        for tokens, ratio in self._at_first.items():
            if tokens != 1:
                self._seconds[tokens] += _FORGOTTEN * (ratio * self._seconds[1] - self._seconds[tokens])


def _mean(before: float, seconds: float) -> float:
    return _KEPT * before + (1 - _KEPT) * min(seconds, _MOST * before)
