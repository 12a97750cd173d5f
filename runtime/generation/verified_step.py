"""A step that verifies drafted tokens: each sequence goes on for as many of them as it would have written itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from adaptc.runtime.errors import AdaptcError
from adaptc.runtime.generation.sequence import TokenSequence
from adaptc.runtime.model.decoder import BatchDecoder, Logits
from adaptc.runtime.model.verifier import Verifier
from adaptc.runtime.speculation.speculation import Proposal, Speculation


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

    def proposals(self, active: Sequence[TokenSequence], ceiling: float) -> list[Proposal] | None:
        """What is verified of each active sequence; None for a plain step.

        Args:
            active: By slot.
            ceiling: The most that any budget counts for.
        """
        if all(each.speculate == "off" for each in active):
            return None
        for slot, sequence in enumerate(active):
            sequence.slot = slot
            sequence.follow_route(self._decoder, slot)
            sequence.limit_budget(self._decoder, ceiling, slot)
        return self._speculation.proposals(active)

    def run(self, active: Sequence[TokenSequence], proposals: Sequence[Proposal]) -> int:
        """Verify; the number of tokens that were written.

        Args:
            active: By slot.
            proposals: For each.
        """
        return sum(self._one(slot, *each) for slot, each in enumerate(zip(active, proposals, strict=True)))

    def _one(self, slot: int, sequence: TokenSequence, proposal: Proposal) -> int:
        """Let one sequence go on."""
        verifier, began = self._verifier, self._clock()
        rows = [sequence.feed(), *proposal.tokens]
        writes = sequence.fed_all
        start, written = verifier.length(slot), 0
        try:
            verified = verifier.verify(slot, rows)
            if proposal.tokens:
                self._speculation.costs.note_reading(len(rows), self._clock() - began)
            for row, logits in enumerate(verified.logits[: None if writes else 0]):
                self._take(sequence, logits, partial(self._again, slot, start + row, rows[row]), verified.ran[row])
                written += 1
                if sequence.ended or row == len(proposal.tokens) or sequence.ids[-1] != proposal.tokens[row]:
                    break
                sequence.feed()
            verifier.rewind(slot, start + max(written, 1))
        except AdaptcError as error:
            sequence.error = error
        if proposal.tokens and sequence.error is None:
            sequence.drafter = proposal.drafter
            sequence.drafted += len(proposal.tokens)
            sequence.accepted += written - 1
        sequence.decode_seconds += self._clock() - began
        return written

    def _take(self, sequence: TokenSequence, logits: Logits, again: Callable[[], Logits], ran: bytes | None) -> None:
        sequence.take(logits, self._speculation.close_logits, again)
        if ran is not None:
            sequence.ran.append(ran)
        sequence.complete_step()

    def _again(self, slot: int, start: int, token: int) -> Logits:
        """The logits after a token as a step of it alone computes them."""
        self._verifier.rewind(slot, start)
        return self._verifier.read_token(slot, token)
