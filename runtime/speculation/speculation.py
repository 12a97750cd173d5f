"""Which tokens are drafted for the sequences of a step, and how many of them are worth their verification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from adaptc.runtime.errors import AdaptcError
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.model.verifier import DraftDecoder, Verifier
from adaptc.runtime.speculation.drafter import Draft, Drafter
from adaptc.runtime.speculation.outlook import Outlook
from adaptc.runtime.speculation.step_costs import StepCosts

OFF, AUTO = "off", "auto"

_WORTH = 1.02
"""A draft is verified if that is expected to be so many times as quick as plain steps."""


class Drafted(Protocol):
    """A sequence for which tokens may be drafted."""

    speculate: str
    options: RequestOptions

    @property
    def left(self) -> int:
        """The largest number of tokens that it may yet write."""

    @property
    def slot(self) -> int:
        """Where it is decoded."""

    @property
    def caught_up(self) -> bool:
        """Whether all of its tokens but the newest one were read."""

    def all_ids(self) -> Sequence[int]:
        """Ids of its prompt and of what was written."""


MakeDrafter = Callable[[Drafted], Drafter]


@dataclass(frozen=True, slots=True)
class Proposal:
    """What is verified of one sequence in a step.

    Attributes:
        drafter: Name of what drafted.
        tokens: What was drafted; none if nothing is worth its time.
    """

    drafter: str = ""
    tokens: tuple[int, ...] = ()


_KEPT = 0.7
"""Of the mean time of a sequence's tokens, when another step is added."""

_PLAIN = Proposal()


class Speculation:
    """Drafts for sequences, as far as it pays; one thread at a time calls it."""

    def __init__(
        self,
        verifier: Verifier,
        costs: StepCosts,
        drafters: Mapping[str, MakeDrafter],
        close: float = 0.0,
        model: DraftDecoder | None = None,
    ) -> None:
        """Begin without sequences.

        Args:
            verifier: Verifies.
            costs: What steps cost.
            drafters: What there is, by name; "auto" takes the first of them that has a draft worth its time.
            close: See `SelfCheck`.
            model: A smaller model that one of them asks; closed with this.
        """
        self.costs = costs
        self.close_logits = close
        self._verifier = verifier
        self._model = model
        self._makers = dict(drafters)
        self._open: dict[Drafted, dict[str, Drafter]] = {}
        self._token_seconds: dict[Drafted, float] = {}  # of plain steps and of the first drafter, lately

    @property
    def drafters(self) -> tuple[str, ...]:
        """Names of what there is."""
        return tuple(self._makers)

    def proposals(self, active: Sequence[Drafted]) -> list[Proposal] | None:
        """What is verified of each active sequence, by slot; None if plain steps are at least as quick.

        Args:
            active: Those that take part in the step.
        """
        for gone in [each for each in self._open if each not in active]:
            self.end(gone)
        wanted = [each.speculate != OFF and each.caught_up for each in active]
        if not any(wanted):
            return None
        plain = self.costs.plain(len(active))
        if plain is None:  # not seen yet, so this step shows it
            return None
        gained = spent = 0.0
        proposals = []
        for sequence, wants in zip(active, wanted, strict=True):
            proposal, tokens, seconds = self._proposal(sequence) if wants else (_PLAIN, 1.0, self.costs.reading(1))
            proposals.append(proposal)
            gained, spent = gained + tokens, spent + seconds
        if not any(each.tokens for each in proposals) or gained * plain < _WORTH * spent * len(active):
            return None
        return proposals

    def end(self, sequence: Drafted) -> None:
        """Forget a sequence."""
        self._token_seconds.pop(sequence, None)
        for drafter in self._open.pop(sequence, {}).values():
            drafter.close()

    def clear(self) -> None:
        """Forget all sequences."""
        for sequence in tuple(self._open):
            self.end(sequence)

    def close(self) -> None:
        """Free what drafts."""
        self.clear()
        if self._model is not None:
            self._model.close()

    def _proposal(self, sequence: Drafted) -> tuple[Proposal, float, float]:
        """What is verified of a sequence, how many tokens that is expected to bring, and its seconds."""
        plain = _PLAIN, 1.0, self.costs.reading(1)
        free = self._verifier.capacity - self._verifier.length(sequence.slot)
        most = min(self._verifier.verifiable(sequence.options), free, sequence.left) - 1  # the last needs no draft
        if most < 1:
            return plain
        names = self.drafters if sequence.speculate == AUTO else (sequence.speculate,)
        for name in names:
            # Where text repeats itself again and again, a model's drafts are held against the next repetition.
            cheaper = self._token_seconds.get(sequence, plain[2]) if name != names[0] else plain[2]
            try:
                draft = self._drafter(name, sequence).draft(
                    sequence.all_ids(), most, Outlook(self.costs, sequence.left, most, cheaper)
                )
            except AdaptcError:  # what drafts has failed, not what answers
                sequence.speculate = OFF
                self.end(sequence)
                return plain
            count, tokens, seconds = self._length(draft)
            if count:
                if name == names[0]:
                    self._note(sequence, seconds / tokens)
                return Proposal(name, draft.tokens[:count]), tokens, seconds
        self._note(sequence, plain[2])
        return plain

    def _drafter(self, name: str, sequence: Drafted) -> Drafter:
        opened = self._open.setdefault(sequence, {})
        if name not in opened:
            opened[name] = self._makers[name](sequence)
        return opened[name]

    def _note(self, sequence: Drafted, token_seconds: float) -> None:
        """Take note of what tokens cost a sequence by plain steps and by its first drafter."""
        before = self._token_seconds.get(sequence, self.costs.reading(1))
        self._token_seconds[sequence] = _KEPT * before + (1 - _KEPT) * token_seconds

    def _length(self, draft: Draft) -> tuple[int, float, float]:
        """The best number of a draft's tokens to verify, what that brings on average, and what it takes."""
        best, expected, right = (0, _WORTH, self.costs.reading(1)), 1.0, 1.0
        for count, sure in enumerate(draft.sure, 1):
            right *= sure
            expected += right
            seconds = self.costs.reading(count + 1)
            if expected * best[2] > best[1] * seconds:
                best = count, expected, seconds
        return best
