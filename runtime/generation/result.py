"""What a request gives: the text, its tokens, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from adaptc.runtime.model.budget import Skips

FinishReason = Literal["eos", "stop", "length", "deadline", "cancelled"]


@dataclass(frozen=True, slots=True)
class Trace:
    """Where the time of one request went.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        new_tokens: Tokens that were chosen.
        prefill_seconds: Time for reading the prompt and choosing the first token.
        decode_seconds: Time for choosing all later tokens; the steps of a batch serve all of its sequences.
        time_to_first_token_seconds: From when the request was made, or its stream first read; it includes waiting for
            others.
        skips: Which gated blocks ran for each token after the warm-up; None for a bundle without gates.
        routes: (index of its first token, route) for each route that wrote, in order; several after `reroute`. Empty
            for a bundle without routes.
        cached_tokens: Tokens of the prompt that were not read, since they were known from an earlier one.
        lowered_to: The lowest budget that load had it run with, see `LoadTargets`; None if none was below its own.
        drafter: What guessed tokens last, see `Request.speculate`; None if nothing did.
        drafted: Tokens that were guessed and verified.
        accepted: How many of them were right, and so took no step of their own.
        adapter: The adapter that it had; None for none.
        budget: The budget that it had, whether it was asked for or `max_loss` picked it; None for the bundle's own.
        expected_loss: What skipping blocks costs at this budget, nats a token, as measured on answers when the gates
            were trained; None if that is not known, or if the budget changed on the way.
    """

    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    time_to_first_token_seconds: float
    skips: Skips | None = field(default=None, compare=False)
    routes: tuple[tuple[int, str], ...] = ()
    cached_tokens: int = 0
    lowered_to: float | None = None
    drafter: str | None = None
    drafted: int = 0
    accepted: int = 0
    adapter: str | None = None
    budget: float | None = None
    expected_loss: float | None = None

    @property
    def tokens_per_step(self) -> float:
        """Tokens after the first for each step of the model, 1 without speculation; 0 if there is none."""
        steps = self.new_tokens - 1 - self.accepted
        return (self.new_tokens - 1) / steps if steps > 0 else 0.0

    @property
    def route(self) -> str | None:
        """The route that wrote last; None for a bundle without routes."""
        return self.routes[-1][1] if self.routes else None

    @property
    def ffn_skipped(self) -> float:
        """Share of all feed-forward blocks that did not run after the warm-up, 0 to 1; 0 without gates."""
        return 0.0 if self.skips is None else self.skips.share

    @property
    def prefill_tokens_per_second(self) -> float:
        """Speed of reading the prompt, without the tokens that were known; 0 if nothing was read."""
        read = self.prompt_tokens - self.cached_tokens
        return read / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def time_per_output_token_seconds(self) -> float | None:
        """Mean time of the tokens after the first; None if there is none."""
        return self.decode_seconds / (self.new_tokens - 1) if self.new_tokens > 1 else None

    @property
    def decode_tokens_per_second(self) -> float:
        """Speed of writing, without the first token; 0 if there is no other."""
        return (self.new_tokens - 1) / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """The result of one request.

    Attributes:
        text: Without special tokens, and up to a stop string; "" if the bundle has no tokenizer.
        ids: Every token chosen, an end token included.
        prompt_tokens: Tokens of the prompt.
        finish_reason: "eos", "stop" (a stop string, or a token of `stop_token_ids`), "length" (`max_new_tokens`, or the
            cache is full), "deadline", or "cancelled" (the stream was closed, or the task that waited was cancelled).
        trace: Where the time went.
    """

    text: str
    ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    trace: Trace

    def __repr__(self) -> str:
        """Its text, why it ended, and how much was read and written how quickly."""
        parts = [f"{len(self.ids)} tokens after {self.prompt_tokens}", f"finish_reason={self.finish_reason!r}"]
        if self.trace.route is not None:
            parts.append(f"route={self.trace.route!r}")
        if self.trace.adapter is not None:
            parts.append(f"adapter={self.trace.adapter!r}")
        if self.trace.skips is not None:
            parts.append(f"{self.trace.ffn_skipped:.0%} of blocks skipped")
        if self.trace.decode_tokens_per_second:
            parts.append(f"{self.trace.decode_tokens_per_second:.0f} tokens/s")
        return f"<Result {self.text!r}: {', '.join(parts)}>"
