"""`/v1/chat/completions`: the next message of a conversation."""

from __future__ import annotations

import secrets
import string
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from adaptc.runtime.errors import AdaptcError
from adaptc.runtime.server.endpoints.constraints import rules_of
from adaptc.runtime.server.endpoints.parts import body_of, note, parts_of, stack_of
from adaptc.runtime.server.endpoints.writing import (
    FINISH,
    LEAST_LOGPROB,
    Answer,
    begin,
    check_length,
    note_result,
    token_text,
    trace_of,
    usage_of,
    wants_skips,
    wants_usage,
    writing_options,
)
from adaptc.runtime.server.protocol.conversations import conversation_of
from adaptc.runtime.server.protocol.errors import ApiError, api_error
from adaptc.runtime.server.protocol.images import read_images
from adaptc.runtime.server.protocol.json_text import DONE, event
from adaptc.runtime.server.protocol.responses import EventStream, Json, unless_gone
from adaptc.runtime.server.protocol.schemas import CHAT
from adaptc.runtime.server.serving.models import TextModel
from adaptc.runtime.text.tool_calls import ToolCall, ToolCallReader, ToolFormat

_LETTERS = string.ascii_letters + string.digits


async def chat(request: Request) -> Response:
    """Answer a conversation, whole or as events."""
    parts = parts_of(request)
    body = await body_of(request, CHAT)
    model, policy = parts.models.text(body.get("model"))
    note(request, model=model.name)
    if "top_logprobs" in body and not body.get("logprobs"):
        raise ApiError(400, "top_logprobs: only with logprobs: true", param="top_logprobs")
    conversation = conversation_of(body, parts.settings.templates)
    check_length(model, conversation.texts(), "messages")
    options = writing_options(parts, model, policy, body, model.max_tokens)
    stack = stack_of(request)
    stack.enter_context(parts.entrance.place(model.name, model.batch))
    if conversation.urls:
        options["images"] = read_images(model.session, conversation.urls)
    if rules := await rules_of(model, body):
        options["rules"] = rules
    top = body.get("top_logprobs", 0) if body.get("logprobs") else None
    make = partial(model.session.chat_async, conversation.messages, template=conversation.variables)
    answer = await unless_gone(request, begin(parts, model, make, options, stack, top, wants_skips(body)))
    calls = ToolCallReader(model.tools if conversation.tools else None, conversation.tools)
    reply = _Reply(model, str(body.get("model") or model.name), answer, calls)
    if body.get("stream"):
        return EventStream(reply.events(request, wants_usage(body)), parts.settings.write_seconds)
    return Json(await unless_gone(request, reply.whole(request)))


@dataclass(frozen=True, slots=True, eq=False)
class _Reply:
    """One answer on its way to the client."""

    model: TextModel
    name: str
    answer: Answer
    calls: ToolCallReader
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self, request: Request) -> dict[str, Any]:
        """The answer as one object."""
        result = await self.answer.stream
        self.answer.finish()
        note_result(request, self.answer, [result])
        parts = [*self.calls.push(result.text), *self.calls.finish()]
        text = "".join(each for each in parts if isinstance(each, str))
        calls = [each for each in parts if isinstance(each, ToolCall)]
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
        if calls:
            message["tool_calls"] = [self._call(each) for each in calls]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(0, self.answer.length(result)),
            "finish_reason": "tool_calls" if calls else FINISH[result.finish_reason],
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage_of([result]),
            "adaptc": trace_of(self.answer, result),
        }

    async def events(self, request: Request, usage: bool) -> AsyncGenerator[bytes, None]:
        """The answer as events."""
        head = self._head("chat.completion.chunk")
        sent, count, role = 0, 0, {"role": "assistant"}
        try:
            async for piece in self.answer.stream:
                for part in self.calls.push(piece):
                    delta, count = self._delta(part, count)
                    first, sent = sent, self.answer.stream.tokens
                    choice = _choice({**role, **delta}, self._logprobs(first, sent))
                    yield event({**head, "choices": [choice], **self.answer.told(first, sent)})
                    role = {}
            result = self.answer.finish()
            note_result(request, self.answer, [result])
            for part in self.calls.finish():
                delta, count = self._delta(part, count)
                yield event({**head, "choices": [_choice({**role, **delta}, None)]})
                role = {}
            finish = "tool_calls" if count else FINISH[result.finish_reason]
            last = {**_choice(role, self._logprobs(sent, self.answer.length(result))), "finish_reason": finish}
            yield event({**head, "choices": [last], "adaptc": trace_of(self.answer, result, sent)})
            if usage:
                yield event({**head, "choices": [], "usage": usage_of([result])})
        except AdaptcError as error:
            note(request, error=str(error))
            yield event(api_error(error).body())
        yield DONE

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.name}

    def _delta(self, part: str | ToolCall, count: int) -> tuple[dict[str, Any], int]:
        if isinstance(part, str):
            return {"content": part}, count
        return {"tool_calls": [{"index": count, **self._call(part)}]}, count + 1

    def _call(self, call: ToolCall) -> dict[str, Any]:
        # Mistral's templates take ids of nine letters and digits only.
        size = 9 if self.model.tools is ToolFormat.MISTRAL else 24
        letters = "".join(secrets.choice(_LETTERS) for _ in range(size))
        id_ = letters if self.model.tools is ToolFormat.MISTRAL else f"call_{letters}"
        return {"id": id_, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}

    def _logprobs(self, first: int, end: int) -> dict[str, Any] | None:
        if self.answer.record is None:
            return None
        return {
            "content": [
                {**self._token(each.token, each.logprob), "top_logprobs": [self._token(*one) for one in each.top]}
                for each in self.answer.tokens(first, end)
            ],
            "refusal": None,
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        tokenizer = self.model.session.tokenizer
        content = None if tokenizer is None else list(tokenizer.token_bytes(token))
        return {"token": token_text(tokenizer, token), "logprob": max(logprob, LEAST_LOGPROB), "bytes": content}


def _choice(delta: dict[str, Any], logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None}
