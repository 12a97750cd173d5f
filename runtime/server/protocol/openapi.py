"""The OpenAPI document: the paths, and the schemas by which bodies are checked."""

from __future__ import annotations

from typing import Any

from adaptc.runtime.server.protocol.checking import Schema
from adaptc.runtime.server.protocol.schemas import (
    ANY_OBJECT,
    CHAT,
    COMPLETION,
    DETOKENIZE,
    EMBEDDINGS,
    INFER,
    JOB,
    ROUTE,
    STRING,
    TOKENIZE,
    obj,
)

ERROR = obj(
    {
        "error": obj(
            {
                "message": STRING,
                "type": STRING,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "message",
            "type",
            "param",
            "code",
        )
    },
    "error",
)
_SEEN = {
    "name": "seen",
    "in": "query",
    "description": "The largest `number` of a request whose skipped blocks are known; they are left out.",
    "schema": {"type": "integer", "minimum": 0, "maximum": 10**15 - 1},
}
# Events without a name are messages.
_EVENTS = {"text/event-stream": {"itemSchema": obj({"data": STRING, "event": {"const": "message"}}, "data")}}


def document(*, ui: bool = True) -> dict[str, Any]:
    """The document, of OpenAPI 3.2: the first that describes the events of a stream one by one.

    Args:
        ui: Whether the server has a page for browsers.
    """
    paths: dict[str, Any] = {
        "/v1/chat/completions": _post("Write the next message of a conversation.", CHAT, events=True),
        "/v1/completions": _post("Continue prompts.", COMPLETION, events=True),
        "/v1/embeddings": _post("Make vectors of texts.", EMBEDDINGS),
        "/v1/route": _post("Decide the route of a prompt, and write nothing.", ROUTE),
        "/v1/infer": _post("Process inputs.", INFER),
        "/v1/jobs": _post("Queue a job.", JOB, status="202"),
        "/v1/jobs/{id}": {
            "get": _operation("The state of a job, with its outputs.", parameter="id"),
            "delete": _operation("Forget a job.", parameter="id"),
        },
        "/tokenize": _post("The ids of a text or a conversation.", TOKENIZE),
        "/detokenize": _post("The text of ids.", DETOKENIZE),
        "/v1/models": {"get": _operation("All models, with their policies.")},
        "/v1/models/{name}": {"get": _operation("One model.", parameter="name")},
        "/health": {"get": _operation("Whether the process answers.", open_=True)},
        "/ready": {"get": _operation("Whether it takes requests.", open_=True)},
        "/metrics": {"get": _operation("What was counted, for Prometheus.", kind="text/plain")},
        "/openapi.json": {"get": _operation("This document.")},
    }
    if ui:
        paths |= {
            "/ui": {"get": _operation("A page that shows what the server does.", kind="text/html", open_=True)},
            "/ui/state": {"get": _operation("What the page shows.") | {"parameters": [_SEEN]}},
            "/ui/{file}": {"get": _operation("A file of the page.", parameter="file", kind="text/*", open_=True)},
        }
    return {
        "openapi": "3.2.0",
        "info": {"title": "adaptc serve", "version": "1"},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


def _post(summary: str, schema: Schema, *, events: bool = False, status: str = "200") -> dict[str, Any]:
    operation = _operation(summary, status=status)
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": published(schema)}}}
    if events:
        operation["responses"][status]["content"] |= _EVENTS
    return {"post": operation}


def _operation(
    summary: str,
    *,
    parameter: str | None = None,
    kind: str = "application/json",
    status: str = "200",
    open_: bool = False,
) -> dict[str, Any]:
    schema = ANY_OBJECT if kind == "application/json" else STRING
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {
            status: {"description": "Done.", "content": {kind: {"schema": schema}}},
            "default": {"description": "An error.", "content": {"application/json": {"schema": ERROR}}},
        },
    }
    if parameter is not None:
        operation["parameters"] = [{"name": parameter, "in": "path", "required": True, "schema": STRING}]
    if open_:
        operation["security"] = []
    return operation


def published(schema: Any) -> Any:
    """A schema without the words that only our messages use."""
    if isinstance(schema, dict):
        return {("description" if name == "needed" else name): published(value) for name, value in schema.items()}
    return [published(each) for each in schema] if isinstance(schema, list) else schema
