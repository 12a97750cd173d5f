"""A running bundle: prompts in, text out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast, overload

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.engine import Engine
from adaptc.runtime.backends.onnxruntime_cpu.decoder import Decoder
from adaptc.runtime.backends.onnxruntime_cpu.routed import Routes
from adaptc.runtime.bundle.manifest import DecoderSpec, ModalSpec
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.errors import RequestError
from adaptc.runtime.generation.request import (
    Prompt,
    Prompts,
    Stop,
    check_count,
    check_room,
    is_batch,
    need,
    read_prompt,
    read_request,
)
from adaptc.runtime.generation.scoring import log_probabilities
from adaptc.runtime.generation.turns import Turns
from adaptc.runtime.generation.writing import Answer, Result, write
from adaptc.runtime.model.budget import Skips, Wish, check_budget
from adaptc.runtime.model.router import Choice
from adaptc.runtime.model.rows import Rows
from adaptc.runtime.multimodal.images import Images, chosen, per_prompt
from adaptc.runtime.text.sampling import Sampling
from adaptc.runtime.text.templates import Message
from adaptc.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

Stream = Generator[str, None, None]

_GREEDY = Sampling()
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_MAX_NEW_TOKENS = 256


class Options(TypedDict, total=False):
    """What every request may say; see `Session.generate`."""

    max_new_tokens: int
    sampling: Sampling
    stop: Stop
    seed: int | None
    budget: float | None
    route: str | None
    images: Any
    modalities: Sequence[str] | None


class Session:
    """A loaded model with the memory it needs, used by one request at a time.

    Threads and coroutines may share a session: their requests run one after another.

    Attributes:
        last: The newest answer of any request, with its trace; None before the first.
        gates: What decides which blocks run under a budget; None for a model that always runs whole.
        scored: Which gated blocks ran in the newest `score` that went token by token; None if all ran.
        scored_route: The way that the newest `score` went; None for a bundle without routes.
        routes: Names of the ways through a stitched bundle, the default first; empty for any other.
        images: What puts images into prompts; None for a bundle that reads text only.
    """

    def __init__(
        self,
        engine: Engine | Rows,
        spec: DecoderSpec,
        tokenizer: Tokenizer | None = None,
        *,
        batch: int = 1,
        chunk: int = 512,
        gates: SkipGates | None = None,
        budget: float | None = None,
        routes: Routes | None = None,
        modal: ModalSpec | None = None,
        images: Images | None = None,
    ) -> None:
        """Allocate the KV cache; most callers want `load`.

        Args:
            engine: A decoder graph, or a decoder with its cache; closed with the session.
            spec: What the graph expects.
            tokenizer: Without one, prompts are ids and answers have no text.
            batch: Most sequences written at the same time.
            chunk: Most tokens of a prompt read at once.
            gates: What decides which blocks run, if the graph has gates.
            budget: Of requests that name none, from 0 (cheapest) to 1 (dense); None for dense, and for what a router
                was calibrated to; no matter without gates or routes.
            routes: What follows the graph, if it is the trunk of a stitched bundle.
            modal: The modalities of a multimodal model.
            images: What puts images into prompts, if the graph takes them; closed with the session.

        Raises:
            RequestError: a value is out of range, or the KV cache does not fit in memory.
            EngineError: the graph is not a decoder.
        """
        check_count("batch", batch)
        check_count("chunk", chunk)
        self._budget = None if budget is None else check_budget(budget)
        self.last: Result | None = None
        self.scored: Skips | None = None
        self.scored_route: str | None = None
        self.gates = gates
        self._spec = spec
        self._tokenizer = tokenizer
        self._decoder: Rows
        if isinstance(engine, Engine):
            trunk = Decoder(engine, spec, batch, chunk, gates)
            self._decoder = trunk if routes is None else routes.decoder(trunk, chunk)
        else:
            self._decoder = engine
        self.routes = self._decoder.routes
        self._streamed: Answer | None = None
        self._modal = modal
        self.images = images
        self._turns = Turns(free=self._free)

    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[True], **options: Unpack[Options]) -> Stream: ...
    @overload
    def generate(
        self, prompt: Prompts, *, stream: Literal[False] = ..., **options: Unpack[Options]
    ) -> list[Result]: ...
    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[False] = ..., **options: Unpack[Options]) -> Result: ...

    def generate(
        self,
        prompt: Prompt | Prompts,
        *,
        max_new_tokens: int = _MAX_NEW_TOKENS,
        sampling: Sampling = _GREEDY,
        stop: Stop = (),
        stream: bool = False,
        seed: int | None = None,
        budget: float | None = None,
        route: str | None = None,
        images: Any = None,
        modalities: Sequence[str] | None = None,
    ) -> Result | list[Result] | Stream:
        """Continue a prompt, or several.

        Args:
            prompt: A text or its ids; a list of these is a batch, of any lengths and any size.
            max_new_tokens: Most tokens to write; fewer if the cache is full before.
            sampling: How tokens are chosen.
            stop: Strings that end an answer and are not part of it.
            stream: Return the pieces as they are written; `last` is the whole answer afterwards.
            seed: From 0; makes sampling repeatable. None draws a new one.
            budget: How much of the model runs, from 0 (cheapest) to 1 (dense), where the bundle has gates or a router;
                the prompt and the first `warmup` positions skip nothing whatever it is. None for the session's.
            route: The route to take, for a stitched bundle; None lets its router pick.
            images: Of the prompt, see `Images.put`; of a batch a list with the images of each prompt.
            modalities: Use just these: without images a prompt is read as the text it is. None uses what is given.

        Returns:
            The answer; for a batch a list of them; for a stream its pieces, which join to the answer's text.
            A stream that is closed early, or dropped, ends its request.

        Raises:
            RequestError: the prompt is empty, too long or not valid, or a value is out of range.
            EngineError: the engine failed.
        """
        batch = is_batch(prompt)
        if batch and stream:
            raise RequestError("stream: only one prompt at a time can be streamed")
        prompts = cast("Sequence[Prompt]", prompt if batch else [prompt])
        pictures = per_prompt(images, len(prompts)) if batch else [images]
        answers = [
            read_request(
                ids,
                self._spec,
                self._tokenizer,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                stop=stop,
                seed=seed,
                index=index,
                wish=wish,
            )
            for index, (ids, wish) in enumerate(
                self._read(each, self._wish(budget, route), given, modalities)
                for each, given in zip(prompts, pictures, strict=True)
            )
        ]
        if stream:
            return self._stream(answers[0])
        results = self._finish(answers)
        return results if batch else results[0]

    def generate_async(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = _MAX_NEW_TOKENS,
        sampling: Sampling = _GREEDY,
        stop: Stop = (),
        seed: int | None = None,
        budget: float | None = None,
        route: str | None = None,
        images: Any = None,
        modalities: Sequence[str] | None = None,
    ) -> AsyncGenerator[str, None]:
        """As `generate` with `stream`, for a coroutine: the work is done in a thread of its own.

        Returns:
            The pieces; ending early, or cancelling the task, ends the request after its current step.

        Raises:
            RequestError: at once, as `generate` does.
            EngineError: the engine failed.
        """
        ids, wish = self._read(prompt, self._wish(budget, route), images, modalities)
        answer = read_request(
            ids,
            self._spec,
            self._tokenizer,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
            seed=seed,
            wish=wish,
        )
        return self._turns.in_thread(self._pieces(answer))

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        *,
        template: Mapping[str, Any] = ...,
        stream: Literal[True],
        **options: Unpack[Options],
    ) -> Stream: ...
    @overload
    def chat(
        self,
        messages: Sequence[Message],
        *,
        template: Mapping[str, Any] = ...,
        stream: Literal[False] = ...,
        **options: Unpack[Options],
    ) -> Result: ...

    def chat(
        self,
        messages: Sequence[Message],
        *,
        template: Mapping[str, Any] = _NOTHING,
        stream: bool = False,
        **options: Unpack[Options],
    ) -> Result | Stream:
        """Write the next message of a conversation.

        Args:
            messages: Each with "role" and "content".
            template: Variables for the chat template, such as "tools" or "enable_thinking".
            stream: See `generate`.
            **options: See `generate`.

        Raises:
            RequestError: the model has no chat template, or it refuses the messages; and as `generate`.
            EngineError: the engine failed.
        """
        tokenizer = need(self._tokenizer, "chat")
        prompt = tokenizer.encode(tokenizer.render(messages, template), special=False)
        if stream:
            return self.generate(prompt, stream=True, **options)
        return self.generate(prompt, **options)

    def score(
        self, ids: Prompt, *, step: bool = False, budget: float | None = None, route: str | None = None
    ) -> npt.NDArray[np.float32]:
        """How likely each token is after those before it.

        Args:
            ids: Token ids, or a text; at most `max_tokens`.
            step: Go token by token through the graph as it runs when it writes, not in chunks.
            budget: As for `generate`. Below 1 a bundle with gates always goes token by token, and `scored` says
                which blocks ran.
            route: As for `generate`; a router reads the whole text.

        Returns:
            float32 [tokens - 1]: natural logarithms of probabilities, of all tokens but the first.

        Raises:
            RequestError: empty, too long or not valid.
            EngineError: the engine failed.
        """
        tokens = read_prompt(ids, self._spec, self._tokenizer)
        wish = self._wish(budget, route)
        with self._turns.turn():
            scores, self.scored = log_probabilities(self._decoder, tokens, step, wish)
            self.scored_route = self._decoder.route(0)
            return scores

    def choose(self, prompt: Prompt, *, budget: float | None = None) -> Choice:
        """Which route the router picks for a prompt, and why; nothing is written.

        Args:
            prompt: A text or its ids.
            budget: As for `generate`.

        Raises:
            RequestError: the bundle has no router; and as `generate`.
        """
        ids = read_prompt(prompt, self._spec, self._tokenizer)
        wish = self._wish(budget, None)
        with self._turns.turn():
            return self._decoder.explain(ids, wish.budget)

    def reroute(self, route: str) -> None:
        """Go on by another route in the stream that is being written, from its next token on.

        The new route's layers read the states that were kept; the layers below them are not computed again.

        Args:
            route: Its name.

        Raises:
            RequestError: there is no such route, or no stream that has begun and not ended.
        """
        wanted = self._wish(None, route).route
        if self._streamed is None or self._streamed.route is None:
            raise RequestError("reroute: no answer is being streamed; it changes the route of one that has begun")
        self._streamed.route = wanted

    def close(self) -> None:
        """Free the model's memory; a request that is running ends with an error at its next token."""
        self._turns.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _free(self) -> None:
        self._decoder.close()
        if self.images is not None:
            self.images.close()

    def _read(
        self, prompt: Prompt, wish: Wish, images: Any, modalities: Sequence[str] | None
    ) -> tuple[npt.NDArray[np.int64], Wish]:
        """A prompt's ids, with room for its images; and a wish that brings them, if they are used."""
        ids = read_prompt(prompt, self._spec, self._tokenizer)
        given = images is not None and not (isinstance(images, (list, tuple)) and not images)
        if not chosen(self._modal, self.images, given, modalities):
            return ids, wish
        assert self.images is not None
        ids, inserts = self.images.put(ids, images)
        check_room(ids, self._spec)
        return ids, replace(wish, inserts=inserts)

    def _finish(self, answers: list[Answer]) -> list[Result]:
        with self._turns.turn():
            for _ in write(self._decoder, answers):
                self._turns.check()
        results = [answer.result(self._decoder.skips(answer.ran, answer.route)) for answer in answers]
        self.last = results[-1]
        return results

    def _stream(self, answer: Answer) -> Stream:
        with self._turns.turn():
            yield from self._pieces(answer)

    def _pieces(self, answer: Answer) -> Stream:
        """The text of one answer, within a turn."""
        self._streamed = answer
        try:
            for _, piece in write(self._decoder, [answer]):
                if piece:
                    yield piece
                self._turns.check()
        finally:
            self._streamed = None
            self.last = answer.result(self._decoder.skips(answer.ran, answer.route))

    def _wish(self, budget: float | None, route: str | None) -> Wish:
        """How much of the bundle runs in a request, and by which route."""
        if route is not None and route not in self.routes:
            there = f"there are: {', '.join(self.routes)}" if self.routes else "this bundle has none"
            raise RequestError(f"route: no route {route!r}; {there}")
        return Wish(self._budget if budget is None else check_budget(budget), route)
