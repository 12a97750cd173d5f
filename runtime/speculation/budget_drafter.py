"""Drafts by the answering model itself, with as many blocks skipped as its gates allow, over the same KV cache.

Attention is always computed, so the cache that a gated step reads is that of the whole model up to the newest tokens.
What the drafts write there is written again when they are verified.

Reference: Elhoushi et al. 2024, "LayerSkip", arXiv:2404.16710, which drafts by early exits of the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter

from adaptc.runtime.model.budget import CHEAPEST
from adaptc.runtime.model.verifier import Verifier
from adaptc.runtime.speculation.drafter import NOTHING, Draft
from adaptc.runtime.speculation.guesses import Experience, Guesses, likely
from adaptc.runtime.speculation.outlook import Outlook
from adaptc.runtime.speculation.speculation import Drafted


class BudgetDrafter:
    """A `Drafter` by gated steps, for one sequence."""

    def __init__(
        self,
        verifier: Verifier,
        sequence: Drafted,
        experience: Experience | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """Begin with nothing drafted.

        Args:
            verifier: Has the sequence.
            sequence: The sequence; it runs every block itself.
            experience: What is known of such guesses, shared with other sequences; None begins anew.
            clock: Seconds.
        """
        self._verifier, self._sequence = verifier, sequence
        self._guesses = Guesses(experience, clock)

    def draft(self, ids: Sequence[int], most: int, outlook: Outlook) -> Draft:
        """See `Drafter.draft`."""
        if not self._guesses.begin(ids, outlook):
            return NOTHING
        verifier, slot = self._verifier, self._sequence.slot
        start = verifier.length(slot)
        options = replace(self._sequence.options, budget=CHEAPEST, ceiling=1.0)
        try:
            return self._guesses.draft(
                ids, most, outlook, lambda token: likely(verifier.read_token(slot, token, options))
            )
        finally:
            verifier.rewind(slot, start)

    def close(self) -> None:
        """See `Drafter.close`; the cache is the sequence's."""
