"""What is to be written and what was: what the rules of chats and the engines that write say to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, eq=False)
class WritingJob:
    """A text to go on with.

    Attributes:
        prompt: Token ids, at least one.
        most: Most tokens to write.
        temperature: 0 for the likeliest tokens, else what logits are divided by.
        top_p: Probability of the likeliest tokens that are drawn from, together.
        purpose: What is done with it; engines do not look at it.
    """

    prompt: tuple[int, ...]
    most: int
    temperature: float
    top_p: float
    purpose: object


@dataclass(frozen=True, slots=True, eq=False)
class WrittenText:
    """What was written.

    Attributes:
        job: For which job.
        ids: The tokens, without the one that ended them.
        end: The token that ended them, or None if there were `most` before.
    """

    job: WritingJob
    ids: tuple[int, ...]
    end: int | None


class WritingJobs(Protocol):
    """Where an engine gets its work."""

    def take(self, count: int) -> list[WritingJob]:
        """Return up to so many jobs; none if there is nothing to do until more is given back, or at all."""

    def give(self, written: Sequence[WrittenText]) -> None:
        """Take what was written."""

    def over(self) -> bool:
        """Return whether to stop at once, whatever is still being written."""


class ChatWriter(Protocol):
    """An engine that writes."""

    @property
    def slots(self) -> int:
        """How many texts it writes at the same time."""

    def run(self, jobs: WritingJobs, seed: int) -> None:
        """Write until there is nothing more to do, or it is time to stop; what is half written then is lost.

        Args:
            jobs: Where work comes from and goes to.
            seed: Of everything that is drawn.
        """
