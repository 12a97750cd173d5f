"""A running bundle: prompts in, text out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np
import numpy.typing as npt

from adaptc.runtime.bundle.manifest import DecoderSpec, ModalSpec
from adaptc.runtime.errors import RequestError
from adaptc.runtime.generation.prompts import Prompt, PromptReader, Prompts, images_per_prompt, is_batch
from adaptc.runtime.generation.request import GenerateOptions, Request
from adaptc.runtime.generation.result import Result
from adaptc.runtime.generation.scoring import log_probabilities
from adaptc.runtime.generation.sequence import TokenSequence, sequence_of
from adaptc.runtime.generation.turns import Turns
from adaptc.runtime.generation.writing import write
from adaptc.runtime.model.budget import Skips, check_budget
from adaptc.runtime.model.decoder import BatchDecoder
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.model.router import Choice
from adaptc.runtime.multimodal.images import Images
from adaptc.runtime.text.templates import Message
from adaptc.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

Stream = Generator[str, None, None]

_NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})


class Session:
    """A loaded model with the memory it needs, used by one request at a time.

    Threads and coroutines may share a session: their requests run one after another.

    Attributes:
        last: The newest result of any request, with its trace; None before the first.
        gates: The skip gates of the graph that reads token ids; None for a model that always runs whole.
        scored: Which gated blocks ran in the newest `score` that went token by token; None if all ran.
        scored_route: The route of the newest `score`; None for a bundle without routes.
        routes: Names of a stitched bundle's routes, the default first; empty for any other.
        tokenizer: Reads and spells text; None if the bundle has none.
        images: Inserts images into prompts; None for a bundle that reads text only.
    """

    def __init__(
        self,
        decoder: BatchDecoder,
        tokenizer: Tokenizer | None = None,
        *,
        spec: DecoderSpec | None = None,
        budget: float | None = None,
        modal: ModalSpec | None = None,
        images: Images | None = None,
    ) -> None:
        """Put the parts together; most callers want `load`.

        Args:
            decoder: Holds the model and its KV cache; closed with the session.
            tokenizer: Without one, prompts are ids and results have no text.
            spec: What the model expects; None for the decoder's own.
            budget: Default budget for requests without one, from 0 (cheapest) to 1 (dense); None for the gates' own
                and for what the router was calibrated to. Without gates and routes it has no effect.
            modal: The modalities of a multimodal model.
            images: Inserts images into prompts, if the decoder takes them; closed with the session.

        Raises:
            RequestError: the budget is out of range.
        """
        self.last: Result | None = None
        self.gates = decoder.gates
        self.scored: Skips | None = None
        self.scored_route: str | None = None
        self.routes = decoder.routes
        self.tokenizer = tokenizer
        self.images = images
        self._decoder = decoder
        self._prompts = PromptReader(decoder.spec if spec is None else spec, tokenizer, modal, images)
        self._budget = None if budget is None else check_budget(budget)
        self._streamed: TokenSequence | None = None
        self._turns = Turns(free=self._free)

    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[True], **options: Unpack[GenerateOptions]) -> Stream: ...
    @overload
    def generate(
        self, prompt: Prompts, *, stream: Literal[False] = ..., **options: Unpack[GenerateOptions]
    ) -> list[Result]: ...
    @overload
    def generate(
        self, prompt: Prompt, *, stream: Literal[False] = ..., **options: Unpack[GenerateOptions]
    ) -> Result: ...

    def generate(
        self, prompt: Prompt | Prompts, *, stream: bool = False, **options: Unpack[GenerateOptions]
    ) -> Result | list[Result] | Stream:
        """Continue a prompt, or several.

        Args:
            prompt: A text or its ids; a list of these is a batch, of any lengths and any size.
            stream: Whether the text is returned piece by piece as it is written; `last` is the whole result afterwards.
            **options: `max_new_tokens`, `sampling`, `stop`, `seed`, `budget`, `route`, `images` and `modalities`, as
                `Request` describes them. In a batch `images` is a list with the images of each prompt.

        Returns:
            The result; for a batch a list of results; for a stream its pieces, which join to the result's text.
            A stream that is closed early, or dropped, ends its request.

        Raises:
            RequestError: the prompt is empty, too long or not valid, or a value is out of range.
            EngineError: the engine failed.
        """
        batch = is_batch(prompt)
        if batch and stream:
            raise RequestError("stream: only one prompt at a time can be streamed")
        request = Request(**options)
        prompts = cast("Sequence[Prompt]", prompt if batch else [prompt])
        images = images_per_prompt(request.images, len(prompts)) if batch else [request.images]
        sequences = [
            self._sequence(each, replace(request, images=its), index)
            for index, (each, its) in enumerate(zip(prompts, images, strict=True))
        ]
        if stream:
            return self._stream(sequences[0])
        results = self._finish(sequences)
        return results if batch else results[0]

    def generate_async(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> AsyncGenerator[str, None]:
        """Stream as `generate` does, for a coroutine: the work is done in a thread of its own.

        Args:
            prompt: A text or its ids.
            **options: See `generate`.

        Returns:
            The pieces; ending early, or cancelling the task, ends the request after its current step.

        Raises:
            RequestError: at once, as `generate` does.
            EngineError: the engine failed.
        """
        return self._turns.in_thread(self._pieces(self._sequence(prompt, Request(**options))))

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        *,
        template: Mapping[str, Any] = ...,
        stream: Literal[True],
        **options: Unpack[GenerateOptions],
    ) -> Stream: ...
    @overload
    def chat(
        self,
        messages: Sequence[Message],
        *,
        template: Mapping[str, Any] = ...,
        stream: Literal[False] = ...,
        **options: Unpack[GenerateOptions],
    ) -> Result: ...

    def chat(
        self,
        messages: Sequence[Message],
        *,
        template: Mapping[str, Any] = _NO_VARIABLES,
        stream: bool = False,
        **options: Unpack[GenerateOptions],
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
        tokenizer = self._prompts.need_tokenizer("chat")
        prompt = tokenizer.encode(tokenizer.render(messages, template), special=False)
        if stream:
            return self.generate(prompt, stream=True, **options)
        return self.generate(prompt, **options)

    def score(
        self, ids: Prompt, *, step: bool = False, budget: float | None = None, route: str | None = None
    ) -> npt.NDArray[np.float32]:
        """The probability of each token of a text after those before it.

        Args:
            ids: Token ids, or a text; at most `max_tokens`.
            step: Whether the text goes token by token through the graph as when it writes, not in chunks.
            budget: As for `generate`. Below 1 a bundle with gates always goes token by token, and `scored` says
                which blocks ran.
            route: As for `generate`; a router reads the whole text.

        Returns:
            float32 [tokens - 1]: natural logarithms of probabilities, of all tokens but the first.

        Raises:
            RequestError: the text is empty, too long or not valid.
            EngineError: the engine failed.
        """
        tokens = self._prompts.ids(ids)
        options = self._options(None if budget is None else check_budget(budget), route)
        with self._turns.turn():
            scores, self.scored = log_probabilities(self._decoder, tokens, step, options)
            self.scored_route = self._decoder.route(0)
            return scores

    def choose(self, prompt: Prompt, *, budget: float | None = None) -> Choice:
        """The route that the router picks for a prompt, and why; nothing is written.

        Args:
            prompt: A text or its ids.
            budget: As for `generate`.

        Raises:
            RequestError: the bundle has no router; and as `generate`.
        """
        ids = self._prompts.ids(prompt)
        options = self._options(None if budget is None else check_budget(budget), None)
        with self._turns.turn():
            return self._decoder.explain(ids, options.budget)

    def reroute(self, route: str) -> None:
        """Continue the stream that is being written by another route, from its next token on.

        The new route's layers read the states that were kept; the layers below them are not computed again.

        Args:
            route: Its name.

        Raises:
            RequestError: there is no such route, or no stream that has begun and not ended.
        """
        self._check_route(route)
        if self._streamed is None or self._streamed.route is None:
            raise RequestError("reroute: no sequence is being streamed; it changes the route of one that has begun")
        self._streamed.route = route

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

    def _sequence(self, prompt: Prompt, request: Request, index: int = 0) -> TokenSequence:
        """A request's sequence, all of it checked; `index` is its place in a batch."""
        options = self._options(request.budget, request.route)
        ids, encode = self._prompts.read(prompt, request)
        if request.stop_strings:
            self._prompts.need_tokenizer("stop strings")
        return sequence_of(request, ids, self._prompts.spec, self.tokenizer, replace(options, inserts=encode), index)

    def _options(self, budget: float | None, route: str | None) -> RequestOptions:
        self._check_route(route)
        return RequestOptions(self._budget if budget is None else budget, route)

    def _check_route(self, route: str | None) -> None:
        if route is not None and route not in self.routes:
            there = f"there are: {', '.join(self.routes)}" if self.routes else "this bundle has none"
            raise RequestError(f"route: no route {route!r}; {there}")

    def _finish(self, sequences: list[TokenSequence]) -> list[Result]:
        with self._turns.turn():
            for _ in write(self._decoder, sequences):
                self._turns.check()
        results = [self._result(each) for each in sequences]
        self.last = results[-1]
        return results

    def _stream(self, sequence: TokenSequence) -> Stream:
        with self._turns.turn():
            yield from self._pieces(sequence)

    def _pieces(self, sequence: TokenSequence) -> Stream:
        """The text of one sequence, within a turn."""
        self._streamed = sequence
        try:
            for _, piece in write(self._decoder, [sequence]):
                if piece:
                    yield piece
                self._turns.check()
        finally:
            self._streamed = None
            self.last = self._result(sequence)

    def _result(self, sequence: TokenSequence) -> Result:
        return sequence.result(self._decoder.skips(sequence.ran, sequence.route))
