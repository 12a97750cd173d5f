"""What drafters that ask a model have in common: one token after another, for as long as it is worth its time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from time import perf_counter

import numpy as np

from adaptc.runtime.model.decoder import Logits
from adaptc.runtime.speculation.drafter import Acceptance, Draft, Worth

_TENTHS = 10
_ANY = "any"
_RETRY = 64
"""Tokens after which a drafter whose guesses were not worth their time is tried again."""

_KEPT = 0.9


def model_acceptance() -> Acceptance:
    """What is believed of guesses before any was made: a model that is as sure of itself is about as often right."""
    return Acceptance(_believed)


def _believed(kind: Hashable) -> float:
    return (kind + 0.5) / _TENTHS if isinstance(kind, int) else 0.7


def likely(logits: Logits) -> tuple[int, int]:
    """The most likely token, and how likely it is, in tenths: float32 [vocab]."""
    best = int(logits.argmax())
    share = 1.0 / float(np.exp(logits - logits[best]).sum())
    return best, min(int(share * _TENTHS), _TENTHS - 1)


class Guesses:
    """The guesses of a model for one sequence, and what they were worth."""

    def __init__(self, acceptance: Acceptance | None = None, clock: Callable[[], float] = perf_counter) -> None:
        """Begin without guesses.

        Args:
            acceptance: What is known of such guesses; None begins anew.
            clock: Seconds.
        """
        self._acceptance = model_acceptance() if acceptance is None else acceptance
        self._clock = clock
        self._open: list[tuple[int, int, Hashable]] = []  # (place, token, kind), not compared yet
        self._seconds = 0.0  # of a token
        self._resting = 0  # until the text has so many tokens

    def begin(self, ids: Sequence[int], worth: Worth) -> bool:
        """Compare the newest guesses with the text; whether it is time for others.

        Args:
            ids: See `Drafter.draft`, as all that follow.
            worth: See there.
        """
        for place, token, kind in self._open:
            if place >= len(ids):
                break
            right = ids[place] == token
            self._acceptance.note(kind, right)
            self._acceptance.note(_ANY, right)
            if not right:
                break
        self._open = []
        if len(ids) < self._resting:
            return False
        if not worth(1, self._acceptance.of(_ANY), self._seconds):
            self._resting = len(ids) + _RETRY  # this one time shows whether that has changed
        return True

    def draft(self, newest: int, most: int, worth: Worth, read: Callable[[int], tuple[int, int]], place: int) -> Draft:
        """Guess one token after another.

        Args:
            newest: The text's last token.
            most: See `Drafter.draft`.
            worth: See there.
            read: Has the model read a token; what it finds most likely then, see `likely`.
            place: The number of tokens of the text.
        """
        tokens: list[int] = []
        sure: list[float] = []
        right, token = 1.0, newest
        while len(tokens) < most and (
            not tokens or worth(len(tokens) + 1, right * self._acceptance.of(_ANY), self._seconds)
        ):
            began = self._clock()
            token, kind = read(token)
            took = self._clock() - began
            if tokens:  # the first one may have had more to read
                self._seconds = _KEPT * self._seconds + (1 - _KEPT) * took if self._seconds else took
            self._open.append((place + len(tokens), token, kind))
            tokens.append(token)
            sure.append(self._acceptance.of(kind))
            right *= sure[-1]
        return Draft(tuple(tokens), tuple(sure))
