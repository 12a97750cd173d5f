"""`/v1/completions`: prompts continued, or scored."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from adaptc.runtime.errors import AdaptcError
from adaptc.runtime.generation.result import Result
from adaptc.runtime.generation.stream import AsyncStream
from adaptc.runtime.server.endpoints.constraints import rules_of
from adaptc.runtime.server.endpoints.parts import body_of, note, parts_of, stack_of
from adaptc.runtime.server.endpoints.scored import TokenTexts, prompt_scores
from adaptc.runtime.server.endpoints.writing import (
    FINISH,
    Answer,
    begin,
    check_length,
    note_result,
    trace_of,
    usage_of,
    wants_skips,
    wants_usage,
    writing_options,
)
from adaptc.runtime.server.protocol.errors import ApiError, api_error
from adaptc.runtime.server.protocol.json_text import DONE, event
from adaptc.runtime.server.protocol.responses import EventStream, Json, unless_gone
from adaptc.runtime.server.protocol.schemas import COMPLETION
from adaptc.runtime.server.serving.models import TextModel

Ids = list[int]


async def complete(request: Request) -> Response:
    """Continue prompts, whole or as events."""
    parts = parts_of(request)
    body = await body_of(request, COMPLETION)
    model, policy = parts.models.text(body.get("model"))
    note(request, model=model.name)
    prompts = _prompts(body["prompt"])
    if len(prompts) > parts.settings.max_prompts:
        raise ApiError(
            400, f"prompt: {len(prompts)} of them; at most {parts.settings.max_prompts} are right", param="prompt"
        )
    if body.get("max_tokens") == 0 and not body.get("echo"):
        raise ApiError(400, "max_tokens: 0; 1 or more are needed where the prompt is not echoed", param="max_tokens")
    for prompt in prompts:
        check_length(model, [prompt] if isinstance(prompt, str) else (), "prompt")
    options = writing_options(parts, model, policy, body, 16)
    stack = stack_of(request)
    stack.enter_context(parts.entrance.place(model.name, model.batch))
    top = body.get("logprobs")
    ids = await unless_gone(request, asyncio.to_thread(_encoded, model, prompts))
    completion = _Completion(model, str(body.get("model") or model.name), ids, bool(body.get("echo")), top)

    async def written(prompt: Ids) -> Answer:
        rules = await rules_of(model, body)  # one for each sequence
        each = options | ({"rules": rules} if rules else {})
        make = cast("Callable[..., AsyncStream]", partial(model.session.generate_async, np.array(prompt, np.int64)))
        return await begin(parts, model, make, each, stack, top, wants_skips(body))

    scores: list[TokenTexts | None] = [None] * len(ids)
    if completion.echo and top is not None:
        chosen: dict[str, Any] = {name: options.get(name) for name in ("budget", "route", "adapter")}
        read = partial(prompt_scores, model, top=top, **chosen)
        scores = [await unless_gone(request, asyncio.to_thread(read, prompt)) for prompt in ids]
    if options["max_tokens"] == 0:
        return Json(completion.scored(scores))
    answers = [await unless_gone(request, written(prompt)) for prompt in ids]
    if body.get("stream"):
        events = completion.events(request, answers, scores, wants_usage(body))
        return EventStream(events, parts.settings.write_seconds)
    return Json(await unless_gone(request, completion.whole(request, answers, scores)))


def _prompts(prompt: str | list[Any]) -> list[str | Ids]:
    """The prompts of a body, a text or ids each."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return prompt


def _encoded(model: TextModel, prompts: Sequence[str | Ids]) -> list[Ids]:
    tokenizer = model.session.tokenizer
    if tokenizer is None and any(isinstance(each, str) for each in prompts):
        raise ApiError(400, "prompt: a text, and this bundle has no tokenizer; token ids are needed", param="prompt")
    return [tokenizer.encode(each) if tokenizer and isinstance(each, str) else list(each) for each in prompts]  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, eq=False)
class _Completion:
    """The answers to some prompts on their way to the client."""

    model: TextModel
    name: str
    prompts: list[Ids]
    echo: bool
    top: int | None
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def scored(self, scores: Sequence[TokenTexts | None]) -> dict[str, Any]:
        """The prompts themselves, when nothing is to be written."""
        choices = [
            {
                "index": index,
                "text": self._echoed(prompt),
                "logprobs": None if found is None else found.body(0),
                "finish_reason": "length",
            }
            for index, (prompt, found) in enumerate(zip(self.prompts, scores, strict=True))
        ]
        count = sum(map(len, self.prompts))
        usage = {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}
        return {**self._head(), "choices": choices, "usage": usage}

    async def whole(
        self, request: Request, answers: Sequence[Answer], scores: Sequence[TokenTexts | None]
    ) -> dict[str, Any]:
        """The answers as one object."""
        results = list(await asyncio.gather(*(_finished(each) for each in answers)))
        note_result(request, answers[0], results)
        choices = []
        for index, (answer, result) in enumerate(zip(answers, results, strict=True)):
            before = self._echoed(self.prompts[index]) if self.echo else ""
            logprobs = None
            if answer.record is not None:
                written = TokenTexts.of(self.model, answer.tokens(0, answer.length(result)))
                logprobs = (written if scores[index] is None else scores[index] + written).body(0)  # type: ignore[operator]
            choices.append(
                {
                    "index": index,
                    "text": before + result.text,
                    "logprobs": logprobs,
                    "finish_reason": FINISH[result.finish_reason],
                }
            )
        traces = [trace_of(answer, result) for answer, result in zip(answers, results, strict=True)]
        body = {**self._head(), "choices": choices, "usage": usage_of(results), "adaptc": traces[0]}
        return body if len(traces) == 1 else {**body, "adaptc": {"each": traces}}

    async def events(
        self, request: Request, answers: Sequence[Answer], scores: Sequence[TokenTexts | None], usage: bool
    ) -> AsyncGenerator[bytes, None]:
        """The answers as events, as they come."""
        queue: asyncio.Queue[dict[str, Any] | Result | Exception] = asyncio.Queue(1)
        tasks = [
            asyncio.ensure_future(self._feed(index, answer, scores[index], queue))
            for index, answer in enumerate(answers)
        ]
        try:
            results: list[Result] = []
            while len(results) < len(answers):
                found = await queue.get()
                if isinstance(found, AdaptcError):
                    note(request, error=str(found))
                    yield event(api_error(found).body())
                    break
                if isinstance(found, Exception):
                    raise found
                if isinstance(found, Result):
                    results.append(found)
                else:
                    yield event(found)
            else:
                note_result(request, answers[0], results)
                if usage:
                    yield event({**self._head(), "choices": [], "usage": usage_of(results)})
            yield DONE
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _feed(
        self,
        index: int,
        answer: Answer,
        scored: TokenTexts | None,
        queue: asyncio.Queue[dict[str, Any] | Result | Exception],
    ) -> None:
        """Put the chunks of one answer into the queue, and its result."""
        text = self._echoed(self.prompts[index]) if self.echo else ""
        sent, offset = 0, 0
        if text:
            await queue.put(self._chunk(index, text, None if scored is None else scored.body(0)))
            offset = len(text)
        try:
            async for piece in answer.stream:
                first, sent = sent, answer.stream.tokens
                logprobs = None
                if answer.record is not None:
                    part = TokenTexts.of(self.model, answer.tokens(first, sent))
                    logprobs, offset = part.body(offset), offset + part.length
                await queue.put({**self._chunk(index, piece, logprobs), **answer.told(first, sent)})
            result = answer.finish()
            logprobs = None
            if answer.record is not None:
                logprobs = TokenTexts.of(self.model, answer.tokens(sent, answer.length(result))).body(offset)
            last = self._chunk(index, "", logprobs, FINISH[result.finish_reason])
            await queue.put({**last, "adaptc": trace_of(answer, result, sent)})
            await queue.put(result)
        except Exception as error:  # whoever reads the queue raises it; nobody else would
            await queue.put(error)

    def _chunk(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head(), "choices": [choice]}

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.name}

    def _echoed(self, prompt: Ids) -> str:
        tokenizer = self.model.session.tokenizer
        return "" if tokenizer is None else tokenizer.decode(prompt, special=True)


async def _finished(answer: Answer) -> Result:
    await answer.stream
    return answer.finish()
