"""One request and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from adaptc.bench.load.reply import Reply


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that was sent and its answer; times are seconds from the start of the run.

    Attributes:
        caller: The caller's number, in the order of their coming.
        turn: The request's number among the caller's, from 0.
        due: When it should have been sent.
        came: When the generator came to it; later than `due` by the generator's own lag.
        sent: When it was sent; later than `came` where a limit of requests at a time let it wait.
        ended: When the answer was complete, or given up.
        reply: The answer; its times count from the start of the run too.
    """

    caller: int
    turn: int
    due: float
    came: float
    sent: float
    ended: float
    reply: Reply

    @property
    def completed(self) -> bool:
        """Whether the answer is complete."""
        return self.reply.error is None

    @property
    def tokens(self) -> int:
        """Tokens written: the server's count, or that of chunks if it has none."""
        return len(self.reply.times) if self.reply.tokens is None else self.reply.tokens

    @property
    def ttft(self) -> float:
        """Seconds from when it was due to the first token: waiting to be sent is part of what a caller waits."""
        return self.reply.times[0] - self.due

    @property
    def e2e(self) -> float:
        """Seconds from when it was due to the last token."""
        return self.reply.times[-1] - self.due

    @property
    def gaps(self) -> tuple[float, ...]:
        """Seconds between chunks."""
        return tuple(after - before for before, after in pairwise(self.reply.times))

    @property
    def tpot(self) -> float | None:
        """Seconds for each token after the first; None if all came at once.

        Where chunks hold several tokens so does the first, whose time is TTFT's: the mean gap is divided by the mean
        number of tokens in a chunk.
        """
        times = self.reply.times
        if len(times) < 2:
            return None
        per_chunk = max(1.0, self.tokens / len(times))
        return (times[-1] - times[0]) / (len(times) - 1) / per_chunk

    def keeps(self, targets: Mapping[str, float]) -> bool:
        """Whether it is complete within targets, seconds by "ttft", "tpot" and "e2e"."""
        return self.completed and all((getattr(self, name) or 0.0) <= most for name, most in targets.items())
