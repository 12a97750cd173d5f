"""A running bundle: prompts in, text out."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from adaptc.runtime.bundle.manifest import DecoderSpec, ModalSpec
from adaptc.runtime.errors import RequestError
from adaptc.runtime.generation.load_control import LoadController, LoadTargets
from adaptc.runtime.generation.option_checks import NO_RULES, BudgetRules, OptionChecks
from adaptc.runtime.generation.prompts import (
    Prompt,
    PromptReader,
    Prompts,
    adapters_per_prompt,
    images_per_prompt,
    is_batch,
)
from adaptc.runtime.generation.request import GenerateOptions, Request, request_of
from adaptc.runtime.generation.result import Result
from adaptc.runtime.generation.scheduler import Limits, Scheduler
from adaptc.runtime.generation.sequence import TokenSequence, sequence_of
from adaptc.runtime.generation.status import Status
from adaptc.runtime.generation.step_watch import StepWatch
from adaptc.runtime.generation.stream import AsyncStream, Stream, Writing, waited
from adaptc.runtime.generation.turns import Turn, Turns
from adaptc.runtime.generation.work import ReadingJob
from adaptc.runtime.model.decoder import BatchDecoder, Ids
from adaptc.runtime.model.router import Choice
from adaptc.runtime.model.scoring import Scores, Scoring
from adaptc.runtime.multimodal.images import Images
from adaptc.runtime.speculation.speculation import OFF, Speculation
from adaptc.runtime.text.templates import Message
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.runtime.validation import check_flag

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

_NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})


class Session:
    """A loaded model with the memory it needs, shared by as many requests at a time as it has slots.

    Threads and coroutines may share a session. Their requests join each other's steps, token by token, and wait only
    where there are more of them than slots, see `load`'s `batch`; a stream begins when it is first read. What a request
    gives belongs to it: a `Result`, or a stream with a `result`.

    Attributes:
        gates: The skip gates of the graph that reads token ids; None for a model that always runs whole.
        routes: Names of a stitched bundle's routes, the default first; empty for any other.
        adapters: Names of the adapters that requests choose among; empty for a bundle that keeps none.
        tokenizer: Reads and spells text; None if the bundle has none.
        images: Inserts images into prompts; None for a bundle that reads text only.
        verified: Whether the bundle's files were compared with their hashes.
        speculation: What drafts tokens for requests; None if nothing does.
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
        label: str = "",
        clock: Callable[[], float] = monotonic,
        limits: Limits | None = None,
        load_targets: LoadTargets | None = None,
        speculation: Speculation | None = None,
        speculate: str | None = None,
        verified: bool = False,
        rules: BudgetRules = NO_RULES,
    ) -> None:
        """Put the parts together; most callers want `load`.

        Args:
            decoder: Holds the model and its KV cache; closed with the session.
            tokenizer: Without one, prompts are ids and results have no text.
            spec: What the model expects; None for the decoder's own.
            budget: Default budget for requests without one, from 0 (cheapest) to 1 (dense); None for the gates' own
                and for what the router was calibrated to.
            modal: The modalities of a multimodal model.
            images: Inserts images into prompts, if the decoder takes them; closed with the session.
            label: What `repr` calls the model and its engine.
            clock: Seconds, for deadlines.
            limits: How requests share the decoder.
            load_targets: What is kept under load by lowering budgets; None lowers none.
            speculation: Drafts tokens that one step verifies; None drafts none.
            speculate: What drafts for requests that name nothing, see `Request`; None for nothing.
            verified: See the attribute.
            rules: What budgets have to keep.

        Raises:
            RequestError: the budget is out of range, or it or targets are given and the decoder has neither gates nor a
                router.
        """
        self.gates = decoder.gates
        self.routes = decoder.routes
        self.adapters = decoder.adapters
        self.tokenizer = tokenizer
        self.images = images
        self.verified = verified
        self._decoder = decoder
        self._prompts = PromptReader(decoder.spec if spec is None else spec, tokenizer, modal, images)
        self._label, self.speculation = label, speculation
        control = None if load_targets is None else LoadController(load_targets)
        self._scheduler = Scheduler(decoder, limits, StepWatch(control), speculation)
        self._turns = Turns(self._scheduler, self._free, clock)
        self._checks = OptionChecks(decoder, budget, load_targets, speculation, speculate, rules)

    @property
    def takes_budget(self) -> bool:
        """Whether a budget changes anything: there are skip gates, or a router."""
        return self._decoder.takes_budget

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
            stream: Whether the text is returned piece by piece as it is written.
            **options: See `GenerateOptions`. In a batch `images` is a list with the images of each prompt.

        Returns:
            The result; for a batch a list of results, which is empty for []; for a stream its pieces, with a `result`
            at their end.

        Raises:
            RequestError: the prompt is empty, too long or not valid, or a value is out of range.
            EngineError: the engine failed.
        """
        writing = self._writing(prompt, request_of(options), check_flag("stream", stream))
        if stream:
            return Stream(self._turns, writing, self._checks)
        self._finish(writing)
        results = writing.results()
        return results if is_batch(prompt) else results[0]

    @overload
    def generate_async(
        self, prompt: Prompts, **options: Unpack[GenerateOptions]
    ) -> Coroutine[Any, Any, list[Result]]: ...
    @overload
    def generate_async(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> AsyncStream: ...

    def generate_async(
        self, prompt: Prompt | Prompts, **options: Unpack[GenerateOptions]
    ) -> AsyncStream | Coroutine[Any, Any, list[Result]]:
        """Continue a prompt, or several, for a coroutine; the work is done in a thread.

        Args:
            prompt: See `generate`.
            **options: See `generate`.

        Returns:
            What `await` makes a result of; `async for` gives its pieces instead. For a batch, what `await` makes a list
            of results of. Cancelling the task that waits ends the request after its current step.

        Raises:
            RequestError: at once, as `generate` does.
            EngineError: the engine failed.
        """
        writing = self._writing(prompt, request_of(options), not is_batch(prompt))
        if is_batch(prompt):
            return self._results(writing)
        return AsyncStream(self._turns, writing, self._checks)

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
            messages: Each with "role" and "content": a text, or a list of parts such as {"type": "text", "text": ...}.
            template: Variables for the chat template, such as "tools" and "documents", lists of mappings, or
                "enable_thinking"; `{"continue_final_message": True}` has the model go on with the last message, and
                `{"chat_template": ...}` names one of the model's templates, or is one. Without a name a request with
                tools takes the template "tool_use" where there is one.
            stream: See `generate`.
            **options: See `generate`.

        Raises:
            RequestError: the model has no chat template, it refuses the messages, does not use a variable, or takes
                more than its time or memory; and as `generate`.
            EngineError: the engine failed.
        """
        ids = self._chat_ids(messages, template, options)
        if check_flag("stream", stream):
            return self.generate(ids, stream=True, **options)
        return self.generate(ids, **options)

    def chat_async(
        self,
        messages: Sequence[Message],
        *,
        template: Mapping[str, Any] = _NO_VARIABLES,
        **options: Unpack[GenerateOptions],
    ) -> AsyncStream:
        """Write the next message of a conversation, for a coroutine.

        Args:
            messages: See `chat`.
            template: See `chat`.
            **options: See `generate`.

        Returns:
            See `generate_async`.

        Raises:
            RequestError: at once, as `chat` does.
            EngineError: the engine failed.
        """
        return self.generate_async(self._chat_ids(messages, template, options), **options)

    def score(
        self,
        ids: Prompt,
        *,
        step: bool = False,
        budget: float | None = None,
        route: str | None = None,
        adapter: str | None = None,
    ) -> Scores:
        """The probability of each token of a text after those before it.

        Args:
            ids: Token ids, or a text; at most `max_tokens`.
            step: Whether the text goes token by token through the graph as when it writes, not in chunks.
            budget: As for `generate`. Below 1 a bundle with gates always goes token by token, and the scores say which
                blocks ran.
            route: As for `generate`; a router reads the whole text.
            adapter: As for `generate`.

        Raises:
            RequestError: the text is empty, too long or not valid.
            EngineError: the engine failed.
        """
        tokens, options = self._prompts.ids(ids), self._checks.options(budget, route, adapter)
        scoring = Scoring(self._decoder, tokens, options, check_flag("step", step))
        self._finish(Turn([ReadingJob(scoring.read, scoring.alone)]))
        return scoring.scores

    def choose(self, prompt: Prompt, *, budget: float | None = None) -> Choice:
        """The route that the router picks for a prompt, and why; nothing is written.

        Args:
            prompt: A text or its ids.
            budget: As for `generate`.

        Raises:
            RequestError: the bundle has no router; and as `generate`.
        """
        ids = self._prompts.ids(prompt)
        options, chosen = self._checks.options(budget, None), list[Choice]()

        def choose(slot: int) -> Iterator[None]:
            chosen.append(self._decoder.explain(ids, options.budget, slot))
            return iter(())

        self._finish(Turn([ReadingJob(choose, alone=False)]))
        return chosen[0]

    def status(self) -> Status:
        """How busy the session is, for whoever watches it or spreads requests over several."""
        return self._scheduler.status

    def reroute(self, route: str) -> None:
        """Continue the stream that is being written by another route, see `Stream.reroute`.

        Args:
            route: Its name.

        Raises:
            RequestError: there is no such route, or not one stream that has begun and not ended.
        """
        self._checks.route(route)
        begun = [turn for turn in self._turns.live() if isinstance(turn, Writing) and turn.route is not None]
        if not begun:
            raise RequestError("reroute: no sequence is being streamed; it changes the route of one that has begun")
        if len(begun) > 1:
            raise RequestError(f"reroute: {len(begun)} requests have begun; the stream's own reroute says which one")
        begun[0].reroute(route)

    def close(self) -> None:
        """Free the model's memory; a request that is running ends with an error at its next token."""
        self._turns.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        """What was loaded, and the defaults of its requests."""
        spec = self._prompts.spec
        parts = [self._label] if self._label else []
        parts += [f"budget={self._checks.default:g}"] if self._checks.default is not None else []
        parts += [f"routes={'/'.join(self.routes)}"] if self.routes else []
        parts += [f"adapters={'/'.join(self.adapters)}"] if self.adapters else []
        parts += [f"max_tokens={spec.max_tokens}", f"batch={self._decoder.batch}"]
        return f"<Session {', '.join(parts)}{', closed' if self._turns.closed else ''}>"

    def _free(self) -> None:
        self._decoder.close()
        if self.speculation is not None:
            self.speculation.close()
        if self.images is not None:
            self.images.close()

    def _writing(self, prompt: Prompt | Prompts, request: Request, stream: bool) -> Writing:
        """The turn of a request, all of it checked."""
        batch = is_batch(prompt)
        if batch and stream:
            raise RequestError("stream: only one prompt at a time can be streamed")
        prompts = cast("Sequence[Prompt]", prompt if batch else [prompt])
        images = images_per_prompt(request.images, len(prompts)) if batch else [request.images]
        adapters = adapters_per_prompt(request.adapter, len(prompts)) if batch else [request.adapter]
        sequences = [
            self._sequence(each, replace(request, images=its, adapter=adapter), index)
            for index, (each, its, adapter) in enumerate(zip(prompts, images, adapters, strict=True))
        ]
        seconds = request.deadline
        return Writing(self._decoder, sequences, None if seconds is None else self._turns.clock() + seconds, stream)

    def _sequence(self, prompt: Prompt, request: Request, index: int = 0) -> TokenSequence:
        """A request's sequence, all of it checked; `index` is its place in a batch."""
        options = self._checks.asked(request)
        ids, encode = self._prompts.read(prompt, request)
        if request.stop_strings:
            self._prompts.need_tokenizer("stop strings")
        options, floor = replace(options, inserts=encode), self._checks.floor(request.budget, request.min_budget)
        speculate = OFF if options.adapter is not None else self._checks.speculate(request.speculate)
        how = options, index, floor, speculate, self._checks.expected_loss(options.budget)
        return sequence_of(request, ids, self._prompts.spec, self.tokenizer, *how)

    def _chat_ids(self, messages: Sequence[Message], template: Mapping[str, Any], options: GenerateOptions) -> Ids:
        tokenizer = self._prompts.need_tokenizer("chat")
        request = Request(images=options.get("images"), modalities=options.get("modalities"))
        text = self._prompts.written(tokenizer.render(messages, template), request)
        return self._prompts.checked(tokenizer.encode(text, special=False))

    def _finish(self, turn: Turn) -> None:
        """Wait for the end of a turn in a thread."""
        try:
            self._turns.drive(turn)
        except BaseException:
            turn.end("cancelled")
            raise
        turn.check()

    async def _results(self, writing: Writing) -> list[Result]:
        await waited(self._turns, writing)
        writing.check()
        return writing.results()
