"""Servers for tests: tiny models behind the real application, asked without a socket."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx

from adaptc.runtime import DecoderSpec, Session
from adaptc.runtime.server.app import application
from adaptc.runtime.server.endpoints.parts import ServerParts
from adaptc.runtime.server.serving.entrance import Entrance
from adaptc.runtime.server.serving.models import (
    InputModel,
    Model,
    Models,
    Policy,
    TextModel,
    load_model,
    max_characters,
)
from adaptc.runtime.server.serving.settings import Settings
from adaptc.runtime.text.grammars import Grammars
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.runtime.text.tool_calls import tool_format_of
from tests.models import views_model
from tests.models.history_lm import HistoryLm, decoder_spec
from tests.models.sessions import session_of
from tests.models.tiny_tokenizer import TEMPLATE, byte_level, files

SPEC = decoder_spec(vocab=320, max_tokens=100)


def parts_of(*models: Model, **settings: Any) -> ServerParts:
    made = Settings(**settings)
    return ServerParts(made, Models(models), Entrance(made.max_queue))


def tiny(bundle: Path, name: str = "tiny") -> TextModel:
    """The tiny attention model, from its bundle."""
    model = load_model(bundle, name, threads=1)
    assert isinstance(model, TextModel)
    return model


def by_hand(
    name: str = "hand",
    lm: HistoryLm | None = None,
    session: Session | None = None,
    *,
    template: str = TEMPLATE,
    spec: DecoderSpec = SPEC,
) -> TextModel:
    """A model whose answers can be computed by hand."""
    spelled = files(byte_level(), template)
    made = session or session_of((lm or HistoryLm(spec)).engine, spec, Tokenizer(spelled))
    grammars = Grammars(spelled["tokenizer.json"], spec.vocab_size, spec.eos_token_ids)
    policies = {route: Policy(route=route) for route in made.routes}
    tools = tool_format_of([template])
    most = max_characters(made.tokenizer, spec.max_tokens)
    return TextModel(name, made, spec.max_tokens, most, spec.vocab_size, 1, policies, tools, grammars)


def classifier(name: str = "views") -> InputModel:
    return InputModel(name, views_model.session())


def ask(
    parts: ServerParts, path: str, body: Any = None, *, method: str | None = None, **options: Any
) -> httpx.Response:
    """The answer to one request; `body` is its JSON."""
    return asyncio.run(ask_async(parts, path, body, method=method, **options))


async def ask_async(
    parts: ServerParts, path: str, body: Any = None, *, method: str | None = None, **options: Any
) -> httpx.Response:
    transport = httpx.ASGITransport(application(parts), raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        given = options if body is None else {"json": body, **options}
        return await client.request(method or ("GET" if body is None else "POST"), path, **given)


def message(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, which must end as one."""
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    *parts, last, nothing = answer.text.split("\n\n")
    assert (last, nothing) == ("data: [DONE]", "")
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error that an answer is, in OpenAI's shape."""
    body = answer.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error
