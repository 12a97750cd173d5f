"""A sequence that is being decoded: its tokens so far, how the next one is chosen, and when it ends."""

from __future__ import annotations

from typing import cast

import numpy as np

from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.generation.request import Request
from adaptc.runtime.generation.result import FinishReason, Result, Trace
from adaptc.runtime.model.budget import Skips
from adaptc.runtime.model.decoder import BatchDecoder, Ids, Logits
from adaptc.runtime.model.options import NO_OPTIONS, RequestOptions
from adaptc.runtime.text.detokenize import Text
from adaptc.runtime.text.sampling import Sampler
from adaptc.runtime.text.tokenizer import Tokenizer


class TokenSequence:
    """One request being decoded.

    Attributes:
        prompt: int64 [tokens].
        options: How it runs through the model.
        sampler: Chooses its tokens.
        ids: The tokens chosen so far.
        reason: Why it ended; None while it goes on.
        route: The route it is on. The next step moves the sequence to another one that is set here.
        routes: (index of its first token, route) for each route so far.
        ran: Which gated blocks ran, for each step after the warm-up.
        prefill_seconds: See `Trace`, as all times.
        decode_seconds: See `Trace`.
        time_to_first_token_seconds: See `Trace`.
    """

    def __init__(
        self,
        prompt: Ids,
        limit: int,
        sampler: Sampler,
        text: Text | None,
        eos: frozenset[int],
        options: RequestOptions = NO_OPTIONS,
    ) -> None:
        """Begin with nothing written.

        Args:
            prompt: int64 [tokens], at least 1.
            limit: The largest number of tokens to choose, at least 1.
            sampler: Chooses them.
            text: Spells them; None if there is no tokenizer.
            eos: Tokens that end the sequence.
            options: How it runs through the model.
        """
        self.prompt = prompt
        self.options = options
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
        """Choose the next token from logits; see `accept`."""
        return self.accept(self.sampler(logits))

    def accept(self, token: int) -> str:
        """Add a token that was chosen, and set `reason` if it is the last.

        Returns:
            The text that is certain now, which may be "".
        """
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

    def follow_route(self, decoder: BatchDecoder, slot: int) -> None:
        """Move the sequence in a slot to the route that was set since the last step, and note the one it is on."""
        if self.route is not None and self.route != decoder.route(slot):
            decoder.reroute(slot, self.route)
        self.route = decoder.route(slot)
        if self.route is not None and (not self.routes or self.routes[-1][1] != self.route):
            self.routes.append((len(self.ids), self.route))

    def result(self, skips: Skips | None = None) -> Result:
        """The result so far.

        Args:
            skips: The steps of `ran`, collected by the decoder.
        """
        tokens = len(self.prompt)
        seconds = self.prefill_seconds, self.decode_seconds, self.time_to_first_token_seconds
        trace = Trace(tokens, len(self.ids), *seconds, skips, tuple(self.routes))
        return Result("".join(self._pieces), tuple(self.ids), tokens, self.reason or "cancelled", trace)


def sequence_of(
    request: Request,
    prompt: Ids,
    spec: DecoderSpec,
    tokenizer: Tokenizer | None = None,
    options: RequestOptions = NO_OPTIONS,
    index: int = 0,
) -> TokenSequence:
    """The sequence of a request, ready to be decoded.

    Args:
        request: How the prompt is continued.
        prompt: int64 [tokens], 1 to `max_tokens`.
        spec: What the model expects.
        tokenizer: Spells the text; None leaves the result without text.
        options: How the sequence runs through the model.
        index: Place in a batch: equal prompts with one seed still get results of their own.
    """
    # The last token is chosen but not read, so it needs no position in the cache.
    limit = min(request.max_new_tokens, spec.max_tokens - len(prompt) + 1)
    random = np.random.default_rng(None if request.seed is None else (request.seed, index))
    text = None if tokenizer is None else Text(tokenizer.decoding(), request.stop_strings)
    sampler = Sampler(request.sampling, cast("list[int]", prompt.tolist()), random)
    return TokenSequence(prompt, limit, sampler, text, frozenset(spec.eos_token_ids), options)
