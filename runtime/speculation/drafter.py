"""The interface of what guesses the next tokens of a sequence, and how likely its guesses are to be right."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from adaptc.runtime.speculation.outlook import Outlook

_KEPT = 0.98
"""Of what was counted, when another guess is: some fifty guesses are remembered."""

_PRIOR = 4.0
"""Guesses that what is believed at first is worth."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that a sequence may go on with.

    Attributes:
        tokens: In order.
        sure: For each, the probability that it is right if those before it are, 0 to 1.
    """

    tokens: tuple[int, ...] = ()
    sure: tuple[float, ...] = ()


NOTHING = Draft()


class Drafter(Protocol):
    """Guesses the next tokens of one sequence."""

    def draft(self, ids: Sequence[int], most: int, outlook: Outlook) -> Draft:
        """Guess what follows.

        Args:
            ids: The prompt's tokens and all that was written; those of the call before are the first of them.
            most: The largest number of tokens, from 1.
            outlook: What guesses would save; asked by drafters whose tokens cost time.

        Raises:
            EngineError: its engine failed.
        """

    def close(self) -> None:
        """Free what it holds; it may be asked again, and begins anew then."""


@dataclass
class Acceptance:
    """How often guesses of each kind were right lately.

    Attributes:
        believed: What is believed of a kind of which nothing is known yet.
    """

    believed: Callable[[Hashable], float]
    _counts: dict[Hashable, tuple[float, float]] = field(default_factory=dict)

    def of(self, kind: Hashable) -> float:
        """The probability that a guess of a kind is right, 0 to 1."""
        right, all_ = self._counts.get(kind, (0.0, 0.0))
        return (right + _PRIOR * self.believed(kind)) / (all_ + _PRIOR)

    def note(self, kind: Hashable, right: bool) -> None:
        """Take note of a guess."""
        counted, all_ = self._counts.get(kind, (0.0, 0.0))
        self._counts[kind] = _KEPT * counted + right, _KEPT * all_ + 1
