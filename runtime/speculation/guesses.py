"""What drafters that ask a model have in common: one token after another, for as long as it is worth its time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from adaptc.runtime.model.decoder import Logits
from adaptc.runtime.speculation.drafter import Acceptance, Draft
from adaptc.runtime.speculation.outlook import Outlook

_TENTHS = 10
_ANY = "any"
_RETRY = 64
"""Tokens after which a drafter whose guesses were not worth their time is tried again."""

_KEPT = 0.9

_MUCH = 16
"""More tokens than these are a text, which is read at once, and not what was written since the last guess."""


@dataclass
class Experience:
    """What is known of a model's guesses, by all sequences that it guesses for.

    Attributes:
        acceptance: How often they were right; at first a model is taken to be right as often as it is sure of itself.
        seconds: That a guess takes; 0 if none was made.
        reading: Seconds for each token of a text that is read before the first guess; 0 if none was.
    """

    acceptance: Acceptance = field(default_factory=lambda: Acceptance(_believed))
    seconds: float = 0.0
    reading: float = 0.0

    def note_guess(self, seconds: float) -> None:
        """Take note of what a guess took."""
        self.seconds = _mean(self.seconds, seconds)

    def note_reading(self, tokens: int, seconds: float) -> None:
        """Take note of what reading some tokens took."""
        self.reading = _mean(self.reading, seconds / tokens)


def _mean(before: float, seconds: float) -> float:
    """A mean, 0 if there was none, with one more time."""
    return _KEPT * before + (1 - _KEPT) * seconds if before else seconds


def _believed(kind: Hashable) -> float:
    return (kind + 0.5) / _TENTHS if isinstance(kind, int) else 0.7


def likely(logits: Logits) -> tuple[int, int]:
    """The most likely token, and how likely it is, in tenths: float32 [vocab]."""
    best = int(logits.argmax())
    share = 1.0 / float(np.exp(logits - logits[best]).sum())
    return best, min(int(share * _TENTHS), _TENTHS - 1)


class Guesses:
    """The guesses of a model for one sequence, and what they were worth."""

    def __init__(self, experience: Experience | None = None, clock: Callable[[], float] = perf_counter) -> None:
        """Begin without guesses.

        Args:
            experience: What is known of such guesses, shared with other sequences; None begins anew.
            clock: Seconds.
        """
        self._experience = Experience() if experience is None else experience
        self._clock = clock
        self._open: list[tuple[int, int, Hashable]] = []  # (place, token, kind), not compared yet
        self._resting = 0  # until the text has so many tokens

    def begin(self, ids: Sequence[int], outlook: Outlook, unread: int = 1) -> bool:
        """Compare the newest guesses with the text; whether it is time for others.

        Args:
            ids: See `Drafter.draft`.
            outlook: See there.
            unread: Tokens of the text that the model has to read first.
        """
        known = self._experience
        for place, token, kind in self._open:
            if place >= len(ids):
                break
            right = ids[place] == token
            known.acceptance.note(kind, right)
            known.acceptance.note(_ANY, right)
            if not right:
                break
        self._open = []
        if len(ids) < self._resting:
            return False
        sure = known.acceptance.of(_ANY)
        if unread > _MUCH and not outlook.worth_reading(unread * known.reading, sure, known.seconds):
            self._resting = len(ids) + _RETRY
            return False
        if not outlook.worth(1, sure, known.seconds):
            self._resting = len(ids) + _RETRY  # this one time shows whether that has changed
        return True

    def draft(
        self, ids: Sequence[int], most: int, outlook: Outlook, read: Callable[[int], tuple[int, int]], unread: int = 1
    ) -> Draft:
        """Guess one token after another.

        Args:
            ids: See `Drafter.draft`.
            most: See there.
            outlook: See there.
            read: Has the model read a token; what it finds most likely then, see `likely`.
            unread: See `begin`.
        """
        known = self._experience
        tokens: list[int] = []
        sure: list[float] = []
        right, token = 1.0, ids[-1]
        while len(tokens) < most and (
            not tokens or outlook.worth(len(tokens) + 1, right * known.acceptance.of(_ANY), known.seconds)
        ):
            began = self._clock()
            token, kind = read(token)
            took = self._clock() - began
            if tokens:
                known.note_guess(took)
            elif unread > _MUCH:
                known.note_reading(unread, took)
            self._open.append((len(ids) + len(tokens), token, kind))
            tokens.append(token)
            sure.append(known.acceptance.of(kind))
            right *= sure[-1]
        return Draft(tuple(tokens), tuple(sure))
