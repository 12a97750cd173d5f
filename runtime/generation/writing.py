"""Write answers: read prompts into free rows, then one token for every row at a time, until all are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from adaptc.runtime.backends.onnxruntime_cpu.decoder import Ids, Logits
from adaptc.runtime.model.budget import ANY, Skips, Wish
from adaptc.runtime.model.rows import Rows, choose
from adaptc.runtime.text.detokenize import Text
from adaptc.runtime.text.sampling import Sampler

FinishReason = Literal["eos", "stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Trace:
    """Where the time of one answer went.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        new_tokens: Tokens of the answer.
        prefill_seconds: Reading the prompt and choosing the first token.
        decode_seconds: Choosing all later tokens; for a batch these steps serve every row.
        time_to_first_token_seconds: From the start of the request, so in a batch it includes waiting.
        skips: Which gated blocks ran for each token after the warm-up; None for a bundle without gates.
        routes: (first token, route) for each route that wrote, in order; more than one after `reroute`. Empty for a
            bundle without routes.
    """

    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    time_to_first_token_seconds: float
    skips: Skips | None = field(default=None, compare=False)
    routes: tuple[tuple[int, str], ...] = ()

    @property
    def route(self) -> str | None:
        """The route that wrote last; None for a bundle without routes."""
        return self.routes[-1][1] if self.routes else None

    @property
    def ffn_skipped(self) -> float:
        """Share of all feed-forward blocks that did not run after the warm-up; 0 without gates."""
        return 0.0 if self.skips is None else self.skips.share

    @property
    def prefill_tokens_per_second(self) -> float:
        """Speed of reading; 0 if nothing was read."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Speed of writing, the first token aside; 0 if there is no other."""
        return (self.new_tokens - 1) / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """One answer.

    Attributes:
        text: Without special tokens, and up to a stop string; "" if the bundle has no tokenizer.
        ids: Every token chosen, an end token included.
        prompt_tokens: Tokens of the prompt.
        finish_reason: "eos", "stop" (a stop string), "length" (max_new_tokens, or the cache is full), or
            "cancelled" (a stream that was closed).
        trace: Where the time went.
    """

    text: str
    ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    trace: Trace


class Answer:
    """One answer in the making."""

    def __init__(
        self,
        prompt: Ids,
        limit: int,
        sampler: Sampler,
        text: Text | None,
        eos: frozenset[int],
        wish: Wish = ANY,
    ) -> None:
        """Nothing is written yet.

        Args:
            prompt: int64 [tokens], at least 1.
            limit: Most tokens to choose, at least 1.
            sampler: Chooses them.
            text: Spells them; None if there is no tokenizer.
            eos: Tokens that end the answer.
            wish: How much of the bundle runs, and by which route.
        """
        self.prompt = prompt
        self.wish = wish
        self.sampler = sampler
        self.route: str | None = None
        self.routes: list[tuple[int, str]] = []
        self.ran: list[bytes] = []
        self.ids: list[int] = []
        self.reason: FinishReason | None = None
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        self.time_to_first_token_seconds = 0.0
        self._limit = limit
        self._text = text
        self._eos = eos
        self._pieces: list[str] = []

    def take(self, logits: Logits) -> str:
        """Choose the next token; the text that is certain now. Sets `reason` at the end."""
        return self.accept(self.sampler(logits))

    def accept(self, token: int) -> str:
        """Go on with a token that was chosen; as `take`."""
        self.ids.append(token)
        text = self._text
        if token in self._eos:
            self.reason = "eos"
            piece = text.finish() if text else ""
        else:
            piece = text.push(token) if text else ""
            if text and text.stopped:
                self.reason = "stop"
            elif len(self.ids) == self._limit:
                self.reason = "length"
                piece += text.finish() if text else ""
        self._pieces.append(piece)
        return piece

    def follow(self, decoder: Rows, row: int) -> None:
        """Note the route a row is on; or put it on the one that was asked for since."""
        if self.route is not None and self.route != decoder.route(row):
            decoder.reroute(row, self.route)
        self.route = decoder.route(row)
        if self.route is not None and (not self.routes or self.routes[-1][1] != self.route):
            self.routes.append((len(self.ids), self.route))

    def result(self, skips: Skips | None = None) -> Result:
        """The answer so far; `skips` is what the decoder makes of `ran`."""
        tokens = len(self.prompt)
        seconds = self.prefill_seconds, self.decode_seconds, self.time_to_first_token_seconds
        trace = Trace(tokens, len(self.ids), *seconds, skips, tuple(self.routes))
        return Result("".join(self._pieces), tuple(self.ids), tokens, self.reason or "cancelled", trace)


def write(decoder: Rows, answers: Iterable[Answer]) -> Iterator[tuple[Answer, str]]:
    """Write answers, as many at a time as the decoder has rows; a row that is free takes the next prompt.

    Yields:
        After every token: its answer, and the text that is certain now, which may be "".

    Raises:
        EngineError: the engine failed, or computed no finite numbers.
    """
    waiting = deque(answers)
    active: list[Answer] = []
    began = perf_counter()
    while waiting or active:
        while waiting and len(active) < decoder.batch:
            answer = waiting.popleft()
            started = perf_counter()
            logits = decoder.start(len(active), answer.prompt, answer.wish)
            answer.follow(decoder, len(active))
            piece = answer.take(logits)
            answer.prefill_seconds = perf_counter() - started
            answer.time_to_first_token_seconds = perf_counter() - began
            if answer.reason is None:
                active.append(answer)
            yield answer, piece
        if active:
            written = list(active)
            pieces = _step(decoder, active)
            yield from zip(written, pieces, strict=True)


def _step(decoder: Rows, active: list[Answer]) -> list[str]:
    """One token for each answer; those that are done leave `active`."""
    started = perf_counter()
    for row, answer in enumerate(active):
        answer.follow(decoder, row)
    tokens = choose(decoder, [answer.ids[-1] for answer in active], [answer.sampler for answer in active])
    pieces = [answer.accept(token) for answer, token in zip(active, tokens, strict=True)]
    seconds = perf_counter() - started
    for row in reversed(range(len(active))):
        answer = active[row]
        answer.decode_seconds += seconds
        if (ran := decoder.ran(row)) is not None:
            answer.ran.append(ran)
        if answer.reason is not None:
            # The rows after this one are all busy: the last of them takes its place.
            moved = active.pop()
            if moved is not answer:
                active[row] = moved
                decoder.move(len(active), row)
    return pieces
