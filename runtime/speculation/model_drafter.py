"""Drafts by a smaller model of the same vocabulary, which the bundle holds beside the one that answers.

It has a KV cache of its own, reads what was written and goes on by its most likely token. How sure a guess is follows
from the probability that the model gives it, by what such guesses were worth lately.

Reference: Leviathan, Kalman, Matias 2023, "Fast Inference from Transformers via Speculative Decoding".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import Protocol

import numpy as np

from adaptc.runtime.model.decoder import Ids, Logits
from adaptc.runtime.speculation.drafter import NOTHING, Draft
from adaptc.runtime.speculation.guesses import Experience, Guesses, likely
from adaptc.runtime.speculation.outlook import Outlook


class DraftSlots:
    """Slots for drafts, each lent to a drafter; the one that has drafted longest ago gives its own up."""

    def __init__(self, slots: Iterable[int]) -> None:
        """Begin with all slots free.

        Args:
            slots: Their numbers, at least one.
        """
        self._free = list(slots)
        self._lent: dict[ModelDrafter, int] = {}  # the one that drafted longest ago first

    def slot(self, drafter: ModelDrafter) -> int:
        """The slot of a drafter, which is told if it is a new one."""
        if drafter in self._lent:
            slot = self._lent.pop(drafter)
        else:
            if not self._free:
                self.give_back(next(iter(self._lent)))
            slot = self._free.pop()
            drafter.forget()
        self._lent[drafter] = slot
        return slot

    def give_back(self, drafter: ModelDrafter) -> None:
        """Take a drafter's slot, if it has one."""
        if drafter in self._lent:
            self._free.append(self._lent.pop(drafter))


class Reader(Protocol):
    """A smaller model as a drafter uses it."""

    def extend(self, slot: int, tokens: Ids) -> Logits:
        """See `DraftDecoder.extend`."""

    def set_length(self, slot: int, tokens: int) -> None:
        """See `DraftDecoder.set_length`."""


class ModelDrafter:
    """A `Drafter` by a smaller model, for one sequence."""

    def __init__(
        self,
        model: Reader,
        slots: DraftSlots,
        experience: Experience | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """Begin without a text.

        Args:
            model: The smaller model.
            slots: Its slots.
            experience: What is known of such guesses, shared with other sequences; None begins anew.
            clock: Seconds.
        """
        self._model, self._slots = model, slots
        self._guesses = Guesses(experience, clock)
        self._read: list[int] = []  # tokens that the slot holds

    def draft(self, ids: Sequence[int], most: int, outlook: Outlook) -> Draft:
        """See `Drafter.draft`."""
        if not self._guesses.begin(ids, outlook, len(ids) - min(len(self._read), len(ids) - 1)):
            return NOTHING
        slot = self._slots.slot(self)
        self._forget_wrong(slot, ids)
        unread = len(ids) - len(self._read)

        def read(token: int) -> tuple[int, int]:
            new = [*ids[len(self._read) : -1], token] if len(self._read) < len(ids) else [token]
            self._read += new
            return likely(self._model.extend(slot, np.array(new, np.int64)))

        return self._guesses.draft(ids, most, outlook, read, unread)

    def close(self) -> None:
        """See `Drafter.close`."""
        self._slots.give_back(self)
        self.forget()

    def forget(self) -> None:
        """Take note that the slot holds nothing of the text."""
        self._read = []

    def _forget_wrong(self, slot: int, ids: Sequence[int]) -> None:
        """Keep what the slot holds of the text, but not its newest token, which is read in any case."""
        known = 0
        for read, written in zip(self._read, ids[:-1], strict=False):
            if read != written:
                break
            known += 1
        del self._read[known:]
        self._model.set_length(slot, known)
