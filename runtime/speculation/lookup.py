"""Drafts from the text itself: what followed the last time that the newest tokens were there.

Summaries, edits and answers about a given text repeat much of it word for word. No model is asked, so a draft costs
microseconds. Its guesses are compared with what is written whether they were verified or not, so it is known what they
are worth at no cost.

Reference: Saxena 2023, "Prompt Lookup Decoding"; Yang et al. 2023, "Inference with Reference", arXiv:2304.04487.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Sequence

from adaptc.runtime.speculation.drafter import NOTHING, Acceptance, Draft
from adaptc.runtime.speculation.outlook import Outlook

_LONGEST = 6
_SHORTEST = 2
_FIRST = {2: 0.4, 3: 0.55, 4: 0.65, 5: 0.75, 6: 0.85}
_LATER = 0.85
_BUCKETS = (1, 4, 8, 16)
"""Of tokens that were repeated so far: guesses within a bucket are equally sure."""


def _believed(kind: Hashable) -> float:
    return _FIRST.get(kind, _LATER) if isinstance(kind, int) else _LATER


class Lookup:
    """A `Drafter` from the n-grams of the prompt and the answer."""

    def __init__(self, acceptance: Acceptance | None = None) -> None:
        """Begin without a text.

        Args:
            acceptance: What is known of such guesses, shared with other sequences; None begins anew.
        """
        self._acceptance = lookup_acceptance() if acceptance is None else acceptance
        self._ends: dict[tuple[int, ...], int] = {}  # where what follows an n-gram begins, the newest time
        self._known = 0
        self._source: int | None = None  # where the text that may be repeated goes on
        self._size = 0  # of the n-gram that was found there
        self._run = 0  # tokens that were repeated since

    def draft(self, ids: Sequence[int], most: int, outlook: Outlook | None = None) -> Draft:
        """See `Drafter.draft`."""
        for place in range(self._known, len(ids)):
            self._follow(ids, place, learns=self._known > 0)
        self._known = len(ids)
        if self._source is None:
            return NOTHING
        tokens = tuple(ids[self._source : self._source + max(most, 0)])
        return Draft(tokens, tuple(self._acceptance.of(self._kind(ahead)) for ahead in range(len(tokens))))

    def close(self) -> None:
        """See `Drafter.close`; it holds nothing but the text."""

    def _follow(self, ids: Sequence[int], place: int, *, learns: bool) -> None:
        """Take in the token at a place.

        Args:
            ids: See `draft`.
            place: Its index.
            learns: Whether a guess at it shows what guesses are worth. Within a prompt, which may repeat itself
                otherwise than answers do, none does.
        """
        source = self._source
        if source is not None:
            right = ids[source] == ids[place]
            if learns:
                self._acceptance.note(self._kind(0), right)
            self._source, self._run = (source + 1, self._run + 1) if right else (None, 0)
        for size in range(min(_LONGEST, place + 1), _SHORTEST - 1, -1):
            gram = tuple(ids[place - size + 1 : place + 1])
            if self._source is None and (end := self._ends.get(gram)) is not None:
                self._source, self._size = end, size
            self._ends[gram] = place + 1

    def _kind(self, ahead: int) -> Hashable:
        """What decides how sure a guess is: the n-gram, or how long the repetition has gone on."""
        run = self._run + ahead
        return self._size if not run else ("run", bisect_right(_BUCKETS, run))


def lookup_acceptance() -> Acceptance:
    """What is known of guesses before any was made."""
    return Acceptance(_believed)
