"""What an answer must look like, as rules of its tokens: JSON, a choice, a regular expression or a grammar."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from adaptc.runtime.server.protocol.conversations import tools_called
from adaptc.runtime.server.protocol.errors import ApiError
from adaptc.runtime.server.serving.models import TextModel
from adaptc.runtime.text.sampling import TokenRule
from adaptc.runtime.text.tool_calls import ToolFormat, call_grammar


async def rules_of(model: TextModel, body: Mapping[str, Any]) -> list[Callable[[], TokenRule]]:
    """The rules that a body asks for: none, or one.

    Raises:
        ApiError: there are two, or one cannot be followed.
        AdaptcError: a grammar is wrong, or what follows grammars is not installed.
    """
    wanted = grammar_of(body, model.tools)
    if wanted is None:
        return []
    if body.get("min_tokens"):
        raise ApiError(400, "min_tokens: not with a grammar, which says when an answer ends", param="min_tokens")
    rule = await asyncio.to_thread(model.grammars.rule, *wanted)
    return [lambda: rule]


def grammar_of(body: Mapping[str, Any], tools: ToolFormat | None) -> tuple[str, str] | None:
    """The kind of a grammar, and its text; None if the body asks for none.

    Args:
        body: Checked against its schema.
        tools: How the model writes calls.

    Raises:
        ApiError: there are several, or a call must be and none can be.
    """
    found: list[tuple[str, str]] = []
    if called := tools_called(body):
        if tools is None:
            raise ApiError(
                400,
                "tool_choice: this model's template teaches no known form of calls; 'auto' is right",
                param="tool_choice",
            )
        schemas = {each["function"]["name"]: each["function"].get("parameters") or {} for each in called}
        found.append(("grammar", call_grammar(tools, schemas)))
    format_ = body.get("response_format") or {}
    if format_.get("type") == "json_object":
        found.append(("json", '{"type": "object"}'))
    elif format_.get("type") == "json_schema":
        schema = (format_.get("json_schema") or {}).get("schema")
        if schema is None:
            raise ApiError(
                400, "response_format.json_schema.schema: missing; a JSON schema is needed", param="response_format"
            )
        found.append(("json", json.dumps(schema)))
    for kind, value in (body.get("structured_outputs") or {}).items():
        if value is None or value is False:
            continue
        if kind == "json":
            value = '{"type": "object"}' if value is True else value if isinstance(value, str) else json.dumps(value)
        elif kind == "choice":
            value = json.dumps(value)
        found.append((kind, value))
    if len(found) > 1:
        raise ApiError(
            400,
            "structured_outputs: several grammars (response_format and tool_choice are too); one is needed",
            param="structured_outputs",
        )
    return found[0] if found else None
