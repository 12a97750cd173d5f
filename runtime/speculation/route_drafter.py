"""Drafts by the cheapest route of a stitched bundle: the trunk's states go through its tail instead of one's own.

The trunk reads a guessed token as a step does, and its states are kept, so the cheap tail catches up with what the text
has become by reading states, whatever wrote them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Protocol, runtime_checkable

from adaptc.runtime.model.decoder import Ids, Logits
from adaptc.runtime.speculation.drafter import NOTHING, Draft
from adaptc.runtime.speculation.guesses import Experience
from adaptc.runtime.speculation.model_drafter import DraftSlots, ModelDrafter
from adaptc.runtime.speculation.outlook import Outlook
from adaptc.runtime.speculation.speculation import Drafted


@runtime_checkable
class RouteGuesser(Protocol):
    """A verifier with routes, one of which may guess for another."""

    def route(self, slot: int) -> str | None:
        """The route of the sequence in a slot."""

    def length(self, slot: int) -> int:
        """See `Verifier.length`."""

    def rewind(self, slot: int, tokens: int) -> None:
        """See `Verifier.rewind`."""

    def guess(self, slot: int, token: int, route: str, tail_slot: int) -> Logits:
        """Add a token to a sequence's trunk, and have another route's tail read all states that it lacks.

        Args:
            slot: Of the sequence.
            token: Its id.
            route: The other route.
            tail_slot: A spare slot of its tail.

        Returns:
            float32 [vocab]: logits of the token that follows by that route; the caller's to keep and to change.
        """

    def forget_guesses(self, route: str, tail_slot: int, tokens: int) -> None:
        """Have a spare slot of a route's tail keep the first tokens only."""


class RouteDrafter:
    """A `Drafter` by another route, for one sequence."""

    def __init__(
        self,
        routed: RouteGuesser,
        sequence: Drafted,
        route: str,
        slots: DraftSlots,
        experience: Experience | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """Begin with nothing drafted.

        Args:
            routed: Has the sequence.
            sequence: The sequence.
            route: What drafts; nothing is drafted for a sequence that is on it.
            slots: Spare slots of that route's tail.
            experience: What is known of such guesses, shared with other sequences; None begins anew.
            clock: Seconds.
        """
        self._routed, self._sequence, self._route = routed, sequence, route
        self._drafter = ModelDrafter(_Tail(routed, sequence, route), slots, experience, clock)

    def draft(self, ids: Sequence[int], most: int, outlook: Outlook) -> Draft:
        """See `Drafter.draft`."""
        slot = self._sequence.slot
        if self._routed.route(slot) == self._route:
            return NOTHING
        start = self._routed.length(slot)
        try:
            return self._drafter.draft(ids, most, outlook)
        finally:
            self._routed.rewind(slot, start)

    def close(self) -> None:
        """See `Drafter.close`."""
        self._drafter.close()


class _Tail:
    """The other route's tail as a `Reader`: of several tokens only the newest one is new to the trunk."""

    def __init__(self, routed: RouteGuesser, sequence: Drafted, route: str) -> None:
        self._routed, self._sequence, self._route = routed, sequence, route

    def extend(self, slot: int, tokens: Ids) -> Logits:
        """See `DraftDecoder.extend`."""
        return self._routed.guess(self._sequence.slot, int(tokens[-1]), self._route, slot)

    def set_length(self, slot: int, tokens: int) -> None:
        """See `DraftDecoder.set_length`."""
        self._routed.forget_guesses(self._route, slot, tokens)
