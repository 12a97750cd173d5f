"""What writing and scoring need of a decoder, whether it is one graph or several with routes between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from adaptc.runtime.backends.onnxruntime_cpu.decoder import Ids, Logits
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.model.budget import Skips, Wish
from adaptc.runtime.model.router import Choice
from adaptc.runtime.text.sampling import Sampler


class Rows(Protocol):
    """Sequences in rows: prompts are read one by one, answers are written together."""

    @property
    def spec(self) -> DecoderSpec:
        """What the bundle expects of token ids, and how many tokens a row holds."""

    @property
    def batch(self) -> int:
        """Rows."""

    @property
    def routes(self) -> tuple[str, ...]:
        """Names of the ways through, the default first; none where there is one."""

    def start(self, row: int, ids: Ids, wish: Wish) -> Logits:
        """Start a row with a prompt, int64 [tokens]; float32 [vocab], logits of the token that follows."""

    def decode(self, tokens: Sequence[int]) -> Logits:
        """Add one token to each of the first rows; float32 [rows, vocab], valid until the next call."""

    def move(self, row: int, to: int) -> None:
        """Put the sequence of one row in the place of another."""

    def route(self, row: int) -> str | None:
        """The route a row is on; None where there are no routes."""

    def reroute(self, row: int, route: str) -> None:
        """Go on by another route from the next token on."""

    def ran(self, row: int) -> bytes | None:
        """Which gated blocks the newest `decode` ran: a byte for each; None while the row warms up."""

    def skips(self, steps: Sequence[bytes], route: str | None) -> Skips | None:
        """What `ran` gave for some steps, together; None without gates."""

    def dense(self, wish: Wish) -> bool:
        """Whether every block runs."""

    def score(self, ids: Ids, most: int, wish: Wish) -> Iterator[Logits]:
        """Read a text in the first row; logits at every position, float32 [some, vocab], at most `most` at a time."""

    def explain(self, ids: Ids, budget: float | None) -> Choice:
        """Which route the router picks for a prompt, and why; the first row is lost.

        Raises:
            RequestError: there are no routes, or no router.
        """

    def close(self) -> None:
        """Free engines and caches."""


@runtime_checkable
class Chooser(Protocol):
    """A decoder that chooses tokens where it computes, so that logits stay there."""

    def choose(self, tokens: Sequence[int], samplers: Sequence[Sampler]) -> list[int]:
        """Add one token to each of the first rows, and choose the one that follows in each; samplers must be free."""


def choose(decoder: Rows, tokens: Sequence[int], samplers: Sequence[Sampler]) -> list[int]:
    """Add one token to each of the first rows, and choose the one that follows in each.

    Args:
        decoder: Whose rows they are; none of them may be full.
        tokens: One for each row.
        samplers: One for each row.

    Raises:
        EngineError: the engine failed, or computed no finite numbers.
    """
    if isinstance(decoder, Chooser) and all(sampler.free for sampler in samplers):
        return decoder.choose(tokens, samplers)
    return [sampler(row) for sampler, row in zip(samplers, decoder.decode(tokens), strict=True)]
