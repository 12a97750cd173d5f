"""What a drafter is told of the sequence that it drafts for: what guesses would save, and what they may cost."""

from __future__ import annotations

from dataclasses import dataclass

from adaptc.runtime.speculation.step_costs import StepCosts

_LIKELY = 0.5
"""Of the tokens that a sequence may yet write, how many it is taken to write."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What steps cost, and how many may follow.

    Attributes:
        costs: What steps cost.
        left: The largest number of tokens that the sequence may yet write.
        most: The largest number of tokens of a draft.
        token_seconds: Seconds of a token without this drafter, by plain steps or by drafts that cost less.
    """

    costs: StepCosts
    left: int
    most: int
    token_seconds: float

    def worth(self, count: int, right: float, seconds: float) -> bool:
        """Whether one more token is worth its draft: if it is right it saves a step, and it costs time in any case.

        Args:
            count: The how-manieth of the draft it is, from 1.
            right: The probability that it and all before it are right, 0 to 1.
            seconds: That it takes to draft.
        """
        costs = self.costs
        return right * self.token_seconds > seconds + costs.reading(count + 1) - costs.reading(count)

    def worth_reading(self, seconds: float, sure: float, each: float) -> bool:
        """Whether it is worth to read the text before anything can be drafted.

        Args:
            seconds: That reading takes.
            sure: The probability that a guess is right, 0 to 1.
            each: Seconds that a guess takes.
        """
        tokens, right, best = 1.0, 1.0, self.token_seconds
        for count in range(1, self.most + 1):
            right *= sure
            tokens += right
            best = min(best, (self.costs.reading(count + 1) + count * each) / tokens)
        return (self.token_seconds - best) * self.left * _LIKELY > seconds
