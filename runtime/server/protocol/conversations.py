"""From the messages and tools of a body to what a chat template is given."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adaptc.runtime.server.protocol.errors import ApiError
from adaptc.runtime.validation import shown


@dataclass(frozen=True, slots=True)
class ChatInput:
    """What a chat template reads.

    Attributes:
        messages: Plain data.
        variables: Variables of the template.
        urls: The images, in their order, as data URLs.
        tools: Names of the tools that the model may call; empty for none.
    """

    messages: list[dict[str, Any]]
    variables: dict[str, Any]
    urls: tuple[str, ...]
    tools: tuple[str, ...]

    def texts(self) -> Iterator[str]:
        """The texts of all messages."""
        for message in self.messages:
            content = message.get("content", "")
            if isinstance(content, str):
                yield content
            else:
                yield from (part["text"] for part in content if part["type"] == "text")


def conversation_of(body: Mapping[str, Any], templates: bool) -> ChatInput:
    """The conversation of a body.

    Args:
        body: Checked against its schema.
        templates: Whether it may bring a chat template of its own.

    Raises:
        ApiError: it asks for something that is not allowed, or not there.
    """
    variables = dict(body.get("chat_template_kwargs") or {})
    if "chat_template" in variables or "messages" in variables:
        raise ApiError(400, "chat_template_kwargs: variables of the template are needed", param="chat_template_kwargs")
    if "chat_template" in body:
        if not templates:
            raise ApiError(
                400,
                "chat_template: templates of requests are not taken; serve with --allow-templates, or leave it out",
                param="chat_template",
            )
        variables["chat_template"] = body["chat_template"]
    for name in ("add_generation_prompt", "continue_final_message"):
        if name in body:
            variables[name] = body[name]
    tools = _tools(body)
    if tools:
        variables["tools"] = tools
    urls: list[str] = []
    messages = [_message(each, urls) for each in body["messages"]]
    return ChatInput(messages, variables, tuple(urls), tuple(each["function"]["name"] for each in tools))


def _tools(body: Mapping[str, Any]) -> list[Any]:
    """The tools that the template is given: none if the request does not want any called."""
    choice = body.get("tool_choice", "auto")
    if choice != "none" and "tool_choice" in body and not body.get("tools"):
        raise ApiError(400, "tool_choice: without tools; leave it out, or give tools", param="tool_choice")
    return list(body.get("tools") or []) if choice != "none" else []


def tools_called(body: Mapping[str, Any]) -> list[Any]:
    """The tools of which one must be called; none if that is the model's choice.

    Raises:
        ApiError: a tool is named that is not there.
    """
    choice, tools = body.get("tool_choice", "auto"), body.get("tools") or []
    if choice in ("auto", "none"):
        return []
    if choice == "required":
        return list(tools)
    name = choice["function"]["name"]
    named = [each for each in tools if each["function"]["name"] == name]
    if not named:
        there = ", ".join(each["function"]["name"] for each in tools)
        raise ApiError(400, f"tool_choice: no tool {shown(name)}; there are: {there}", param="tool_choice")
    return named


def _message(message: Mapping[str, Any], urls: list[str]) -> dict[str, Any]:
    plain = {name: value for name, value in message.items() if value is not None}
    if isinstance(plain.get("content"), list):
        plain["content"] = _parts(plain["content"], urls)
    if "tool_calls" in plain:
        plain["tool_calls"] = [_call(each) for each in plain["tool_calls"]]
        plain.setdefault("content", "")
    return plain


def _parts(parts: list[dict[str, Any]], urls: list[str]) -> str | list[dict[str, Any]]:
    """A text if there is nothing else: templates for text alone read no parts."""
    if all(each["type"] == "text" for each in parts):
        return "".join(each["text"] for each in parts)
    named = []
    for each in parts:
        if each["type"] == "image_url":
            urls.append(each["image_url"]["url"])
            named.append({"type": "image"})
        else:
            named.append({"type": "text", "text": each["text"]})
    return named


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call of an earlier answer; templates read its arguments as a mapping, and the API has them as a text."""
    function = {name: value for name, value in call["function"].items() if value is not None}
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            function["arguments"] = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise ApiError(
                400,
                "messages: arguments of a tool call that are no JSON; a JSON object as text is needed",
                param="messages",
            ) from error
    return {
        **{name: value for name, value in call.items() if value is not None},
        "type": "function",
        "function": function,
    }
