"""A step that verifies drafted tokens: each sequence goes on for as many of them as it would have written itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile

from adaptc.runtime.errors import AdaptcError
from adaptc.runtime.generation.sequence import TokenSequence
from adaptc.runtime.model.decoder import BatchDecoder, Logits
from adaptc.runtime.model.verifier import Verified, Verifier
from adaptc.runtime.speculation.speculation import OFF, Proposal, Speculation


class VerifiedSteps:
    """Runs such steps.

    A sequence chooses from the logits after each token as if it had read that token alone, with its own sampler, so
    what it writes does not depend on what was drafted: not with a temperature either, as it draws the same points of
    the same distributions. The first token that differs from the draft is the last one of the step.
    """

    def __init__(
        self, decoder: BatchDecoder, verifier: Verifier, speculation: Speculation, clock: Callable[[], float]
    ) -> None:
        """Take the parts.

        Args:
            decoder: Runs the model.
            verifier: The same.
            speculation: Says what is verified.
            clock: Seconds.
        """
        self._decoder, self._verifier = decoder, verifier
        self._speculation = speculation
        self._clock = clock

    def proposals(self, active: Sequence[TokenSequence], ceiling: float, room: int) -> list[Proposal] | None:
        """What is verified of each active sequence; None for a plain step.

        Args:
            active: By slot.
            ceiling: The most that any budget counts for.
            room: Tokens that the cache may still take, of all sequences together.
        """
        if all(each.speculate == OFF for each in active):
            return None
        for slot, sequence in enumerate(active):
            sequence.slot = slot
            sequence.follow_route(self._decoder, slot)
            sequence.limit_budget(self._decoder, ceiling, slot)
        if not all(self._verifier.apart(each.options, len(active)) for each in active):
            return None  # their gates decide together, and each by itself would write something else
        found = self._speculation.proposals(active)
        if found is None:
            return None
        found = [self._known(each) for each in found]
        return found if sum(1 + len(each.tokens) for each in found) <= room else None

    def _known(self, proposal: Proposal) -> Proposal:
        """What the model can read of a proposal: heads of one vocabulary may have rows for tokens that do not exist."""
        end = self._decoder.spec.vocab_size
        return replace(proposal, tokens=tuple(takewhile(lambda token: token < end, proposal.tokens)))

    def run(self, active: Sequence[TokenSequence], proposals: Sequence[Proposal]) -> int:
        """Verify; the number of tokens that were written.

        Args:
            active: By slot.
            proposals: For each.
        """
        return sum(self._one(slot, *each) for slot, each in enumerate(zip(active, proposals, strict=True)))

    def _one(self, slot: int, sequence: TokenSequence, proposal: Proposal) -> int:
        """Let one sequence go on."""
        rows = [sequence.feed(), *proposal.tokens]
        writes = sequence.fed_all
        start, written = self._verifier.length(slot), 0
        try:
            verified = self._read(slot, rows)
            for row, logits in enumerate(verified.logits[: None if writes else 0]):
                self._take(sequence, logits, partial(self._again, slot, start + row, rows[row]), verified.ran[row])
                written += 1
                if sequence.ended or row == len(proposal.tokens) or sequence.ids[-1] != proposal.tokens[row]:
                    break
                sequence.feed()
            self._verifier.rewind(slot, start + max(written, 1))
        except AdaptcError as error:
            sequence.error = error
        if proposal.tokens and written:
            sequence.drafter = proposal.drafter
            sequence.drafted += len(proposal.tokens)
            sequence.accepted += written - 1
        return written

    def _read(self, slot: int, rows: Sequence[int]) -> Verified:
        """What the decoder says to the newest token, and to those that were drafted after it."""
        if len(rows) == 1:  # one alone is no draft: gates that decide for all rows together take it, too
            return Verified(self._verifier.read_token(slot, rows[0])[None], (self._decoder.ran(slot),))
        began = self._clock()
        verified = self._verifier.verify(slot, rows)
        self._speculation.costs.note_reading(len(rows), self._clock() - began)
        return verified

    def _take(self, sequence: TokenSequence, logits: Logits, again: Callable[[], Logits], ran: bytes | None) -> None:
        sequence.take(logits, self._speculation.close_logits, again)
        if ran is not None:
            sequence.ran.append(ran)
        sequence.complete_step()

    def _again(self, slot: int, start: int, token: int) -> Logits:
        """The logits after a token as a step of it alone computes them."""
        self._verifier.rewind(slot, start)
        return self._verifier.read_token(slot, token)
