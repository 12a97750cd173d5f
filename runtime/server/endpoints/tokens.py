"""`/tokenize`, `/detokenize` and `/v1/route`: what a model makes of a text before it writes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from adaptc.runtime.server.endpoints.parts import body_of, note, parts_of, stack_of
from adaptc.runtime.server.endpoints.writing import token_text
from adaptc.runtime.server.protocol.conversations import conversation_of
from adaptc.runtime.server.protocol.errors import ApiError
from adaptc.runtime.server.protocol.responses import Json, unless_gone
from adaptc.runtime.server.protocol.schemas import DETOKENIZE, ROUTE, TOKENIZE
from adaptc.runtime.server.serving.models import TextModel
from adaptc.runtime.text.tokenizer import Tokenizer


async def tokenize(request: Request) -> Response:
    """The ids of a text or of a conversation."""
    body = await body_of(request, TOKENIZE)
    model, _ = parts_of(request).models.text(body.get("model"))
    ids = await unless_gone(request, asyncio.to_thread(_ids, model, body))
    answer = {"count": len(ids), "max_model_len": model.max_tokens, "tokens": ids}
    if body.get("return_token_strs"):
        answer["token_strs"] = [token_text(model.session.tokenizer, each) for each in ids]
    return Json(answer)


async def detokenize(request: Request) -> Response:
    """The text of ids."""
    body = await body_of(request, DETOKENIZE)
    model, _ = parts_of(request).models.text(body.get("model"))
    decode = _tokenizer(model).decode
    return Json({"prompt": await unless_gone(request, asyncio.to_thread(decode, body["tokens"], True))})


async def route(request: Request) -> Response:
    """The route that the router picks for a prompt, and why; nothing is written."""
    parts = parts_of(request)
    body = await body_of(request, ROUTE)
    model, policy = parts.models.text(body.get("model"))
    note(request, model=model.name)
    stack_of(request).enter_context(parts.entrance.place(model.name, model.batch))
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        ids = prompt
    else:
        ids = await unless_gone(request, asyncio.to_thread(_ids, model, body))
    asked = (body.get("adaptc") or {}).get("budget")
    budget = policy.budget if asked is None else asked
    choice = await unless_gone(request, asyncio.to_thread(model.session.choose, ids, budget=budget))
    threshold = choice.threshold if math.isfinite(choice.threshold) else None
    return Json({"model": model.name, "prompt_tokens": len(ids), **asdict(choice), "threshold": threshold})


def _ids(model: TextModel, body: Mapping[str, Any]) -> list[int]:
    """The ids of the one of `prompt` and `messages` that a body has."""
    tokenizer = _tokenizer(model)
    if ("prompt" in body) == ("messages" in body):
        raise ApiError(400, "prompt: one of prompt and messages is needed", param="prompt")
    if "prompt" in body:
        return tokenizer.encode(body["prompt"], body.get("add_special_tokens", True))
    conversation = conversation_of(body, templates=False)
    return tokenizer.encode(tokenizer.render(conversation.messages, conversation.variables), special=False)


def _tokenizer(model: TextModel) -> Tokenizer:
    if model.session.tokenizer is None:
        raise ApiError(400, f"model: {model.name} has no tokenizer; its prompts are token ids", param="model")
    return model.session.tokenizer
