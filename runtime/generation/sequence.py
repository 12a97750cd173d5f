"""A sequence that is being decoded: its tokens so far, how the next one is chosen, and when it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.errors import RequestError
from adaptc.runtime.generation.request import Request
from adaptc.runtime.generation.result import FinishReason, Result, Trace
from adaptc.runtime.generation.work import Work
from adaptc.runtime.model.budget import Skips
from adaptc.runtime.model.decoder import BatchDecoder, Ids, Logits
from adaptc.runtime.model.options import NO_OPTIONS, RequestOptions
from adaptc.runtime.speculation.speculation import OFF
from adaptc.runtime.text.detokenize import Text
from adaptc.runtime.text.sampling import Sampler
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.runtime.validation import shown


class TokenSequence(Work):
    """One request being decoded.

    Attributes:
        prompt: int64 [tokens].
        options: How it runs through the model.
        sampler: Chooses its tokens.
        ids: The tokens chosen so far.
        reason: Why it ended; None while it goes on.
        pieces: The text of each token, as far as it was certain then; "" for most special tokens.
        route: The route it is on. The next step moves the sequence to another one that is set here.
        routes: (index of its first token, route) for each route so far.
        ran: Which gated blocks ran, for each step after the warm-up.
        prefill_seconds: See `Trace`, as all times.
        decode_seconds: See `Trace`.
        time_to_first_token_seconds: See `Trace`.
        cached_tokens: See `Trace`.
        fed: How many of its own tokens the decoder was fed; set when its prompt was read.
        floor: The budget below which no load lowers its own, 0 to 1.
        speculate: How its next tokens are guessed, see `Request`; "off" for not at all.
        slot: Where it is decoded, while tokens are drafted for it.
        drafter: What guessed last; None if nothing did.
        drafted: Tokens that were guessed and verified.
        accepted: How many of them were right.
        lowered_to: The lowest budget that load had it run with; None if none was below its own.
        stream: Pieces that its reader has not taken yet; None if nobody reads it piece by piece.
        paced: Whether its reader takes the pieces; not if somebody waits for its end.
    """

    def __init__(
        self,
        prompt: Ids,
        limit: int,
        sampler: Sampler,
        text: Text | None,
        eos: frozenset[int],
        options: RequestOptions = NO_OPTIONS,
        *,
        stops: frozenset[int] = frozenset(),
        least: int = 0,
        priority: int = 0,
        floor: float = 1.0,
        speculate: str = OFF,
        expected_loss: float | None = None,
    ) -> None:
        """Begin with nothing written.

        Args:
            prompt: int64 [tokens], at least 1.
            limit: The largest number of tokens to choose, at least 1.
            sampler: Chooses them.
            text: Spells them; None if there is no tokenizer.
            eos: The model's end tokens.
            options: How it runs through the model.
            stops: Other tokens that end the sequence.
            least: The number of tokens before stop strings count.
            priority: See `Work`.
            floor: See the attribute.
            speculate: See the attribute.
            expected_loss: See `Trace`, of the budget that it begins with.
        """
        super().__init__(priority)
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
        self.cached_tokens = 0
        self.fed = 0
        self.floor = floor
        self.speculate = speculate
        self._expected_loss = expected_loss
        self.drafter: str | None = None
        self.drafted = self.accepted = 0
        self.slot = 0
        self.lowered_to: float | None = None
        self.stream: deque[str] | None = None
        self.paced = True
        self._all_ids: list[int] = []
        self._budget = options.budget
        self._changed = False
        self._limit = limit
        self._text = text
        self._eos = eos
        self._stops = stops
        self._least = least
        self.pieces: list[str] = []
        self._complete: tuple[int, int, FinishReason | None] = 0, 0, None  # tokens, steps of `ran`, reason

    @property
    def done(self) -> bool:
        """See `Work`."""
        return self.reason is not None

    @property
    def unread(self) -> int:
        """See `Work`."""
        return len(self.stream) if self.stream is not None and self.paced else 0

    def tokens(self) -> Ids:
        """The prompt and all that was written: int64 [tokens]."""
        return np.concatenate([self.prompt, np.array(self.ids, np.int64)]) if self.ids else self.prompt

    def all_ids(self) -> Sequence[int]:
        """The prompt and all that was written, as a list that must not be changed."""
        known = self._all_ids
        if len(known) < len(self.prompt) + len(self.ids):
            known.extend(self.ids[len(known) - len(self.prompt) :] if known else [*self.prompt.tolist(), *self.ids])
        return known

    def feed(self) -> int:
        """The token that the decoder reads next."""
        self.fed += 1
        return self.ids[self.fed - 1]

    @property
    def caught_up(self) -> bool:
        """Whether the decoder was fed all tokens but the newest one."""
        return self.fed + 1 >= len(self.ids)

    @property
    def fed_all(self) -> bool:
        """Whether the decoder was fed the newest token; if not, tokens of a preempted sequence are put back."""
        return self.fed >= len(self.ids)

    @property
    def left(self) -> int:
        """The largest number of tokens that it may yet write."""
        return self._limit - len(self.ids)

    def take(self, logits: Logits, close: float = 0.0, again: Callable[[], Logits] | None = None) -> None:
        """Choose the next token from logits, see `Sampler`; and see `accept`."""
        self.accept(self.sampler(logits, close, again))

    def accept(self, token: int) -> None:
        """Add a token that was chosen, with the text that is certain now; set `reason` if it is the last."""
        self.ids.append(token)
        text, may_stop = self._text, len(self.ids) > self._least
        if token in self._eos or token in self._stops:
            self.reason = "eos" if token in self._eos else "stop"
            piece = text.finish() if text else ""
        else:
            piece = text.push(token, may_stop) if text else ""
            if text and text.stopped:
                self.reason = "stop"
            elif len(self.ids) == self._limit:
                self.reason = "length"
                piece += text.finish(may_stop) if text else ""
        self.pieces.append(piece)

    def set_budget(self, budget: float | None) -> None:
        """Have the tokens after the next step run with another budget; any thread may call it."""
        self._budget = budget

    def limit_budget(self, decoder: BatchDecoder, ceiling: float, slot: int | None = None) -> None:
        """Have its newest budget count for a ceiling at most, or for its floor if that is higher.

        Args:
            decoder: Runs it.
            ceiling: From 0 to 1.
            slot: Where it is decoded; None before its prompt is read, and so before a router is asked.
        """
        before, budget, most = self.options, self._budget, max(self.floor, ceiling)
        if budget == before.budget and most == before.ceiling:
            return
        self.options = replace(before, budget=budget, ceiling=most)
        differs = not (decoder.dense(before) and decoder.dense(self.options))
        if most < (1.0 if budget is None else budget) and (differs or (slot is None and before.route is None)):
            self.lowered_to = most if self.lowered_to is None else min(self.lowered_to, most)
        if slot is not None:
            decoder.set_budget(slot, self.options)
        self._changed = self._changed or (differs and bool(self.ids))

    @property
    def uniform(self) -> bool:
        """Whether all that was written ran by one route and with one budget."""
        return len(self.routes) < 2 and not self._changed

    def follow_route(self, decoder: BatchDecoder, slot: int) -> None:
        """Move the sequence in a slot to the route that was set since the last step, and note the one it is on."""
        if self.route is not None and self.route != decoder.route(slot):
            decoder.reroute(slot, self.route)
        self.route = decoder.route(slot)
        if self.route is not None and (not self.routes or self.routes[-1][1] != self.route):
            self.routes.append((len(self.ids), self.route))

    def complete_step(self) -> None:
        """Take what the newest step brought into the result; `result` may be asked for in the middle of a step."""
        self._complete = len(self.ids), len(self.ran), self.reason
        if self.stream is not None and self.pieces[-1]:
            self.stream.append(self.pieces[-1])

    def ran_for(self, token: int) -> bytes | None:
        """Which gated blocks ran in the step that chose a token, a byte for each; any thread may ask.

        Args:
            token: Its index among those of complete steps.

        Returns:
            None for the first token, which the prompt's last one gave, and for tokens of the warm-up.
        """
        tokens, steps, _ = self._complete
        place = token - (tokens - steps)  # the newest step chose the newest token
        return self.ran[place] if 0 <= place < steps else None

    def result(self, skips: Callable[[Sequence[bytes], str | None], Skips | None], cut: FinishReason) -> Result:
        """The result of all complete steps; threads may ask for it at any time.

        Args:
            skips: Collects the steps of `ran` for a route, see `BatchDecoder.skips`.
            cut: The reason if the sequence had not ended by then.
        """
        tokens, steps, reason = self._complete
        routes = tuple(each for each in self.routes if each[0] < tokens)
        trace = Trace(
            len(self.prompt),
            tokens,
            self.prefill_seconds,
            self.decode_seconds,
            self.time_to_first_token_seconds,
            skips(self.ran[:steps], routes[-1][1] if routes else None),
            routes,
            self.cached_tokens,
            self.lowered_to,
            self.drafter,
            self.drafted,
            self.accepted,
            self.options.adapter,
            self._budget,
            None if self._changed or self.lowered_to is not None else self._expected_loss,
        )
        text = "".join(self.pieces[:tokens])
        return Result(text, tuple(self.ids[:tokens]), len(self.prompt), reason or cut, trace)


def sequence_of(
    request: Request,
    prompt: Ids,
    spec: DecoderSpec,
    tokenizer: Tokenizer | None = None,
    options: RequestOptions = NO_OPTIONS,
    index: int = 0,
    floor: float = 1.0,
    speculate: str = OFF,
    expected_loss: float | None = None,
) -> TokenSequence:
    """The sequence of a request, ready to be decoded.

    Args:
        request: How the prompt is continued.
        prompt: int64 [tokens], 1 to `max_tokens`.
        spec: What the model expects.
        tokenizer: Spells the text; None leaves the result without text.
        options: How the sequence runs through the model.
        index: Place in a batch: equal prompts with one seed still get results of their own.
        floor: See `TokenSequence`.
        speculate: See `TokenSequence`.
        expected_loss: See `TokenSequence`.

    Raises:
        RequestError: the model has no such end token.
    """
    # The last token is chosen but not read, so it needs no position in the cache.
    limit = min(request.max_new_tokens, spec.max_tokens - len(prompt) + 1)
    random = np.random.default_rng(None if request.seed is None else (request.seed, index))
    words = request.stop_strings
    text = None if tokenizer is None else Text(tokenizer.decoding(), words, tokenizer.special_in(words))
    eos, stops = frozenset(spec.eos_token_ids), frozenset(request.stop_token_ids)
    ends = _ends(eos, stops, request.min_new_tokens, spec.vocab_size)
    sampler = Sampler(request.sampling, cast("list[int]", prompt.tolist()), random, ends, request.min_new_tokens)
    return TokenSequence(
        prompt,
        limit,
        sampler,
        text,
        eos,
        options,
        stops=stops,
        least=request.min_new_tokens,
        priority=request.priority,
        floor=floor,
        speculate=speculate,
        expected_loss=expected_loss,
    )


def _ends(eos: frozenset[int], stops: frozenset[int], least: int, vocab: int) -> frozenset[int]:
    """The tokens that end the text, refused if the model lacks one that was asked for, or if nothing else is left."""
    outside = [token for token in stops if token >= vocab]
    if outside:
        raise RequestError(f"stop_token_ids: token id {shown(min(outside))}; ids go from 0 to {vocab - 1}")
    ends = stops | {token for token in eos if token < vocab}  # a model may name end tokens that it never writes
    if least and len(ends) == vocab:
        raise RequestError(f"min_new_tokens: {least}; every token of the vocabulary ends the text, so 0 is right")
    return ends
