"""Read the tool calls that a model writes, in the formats of the families: Hermes and Qwen, Llama 3, Mistral."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from adaptc.runtime.errors import RequestError
from adaptc.runtime.text.grammars import JSON_FORM
from adaptc.runtime.validation import shown


class ToolFormat(Enum):
    """How a model's template has it write a call.

    HERMES: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, several in an answer, among text.
    LLAMA3: `{"name": ..., "parameters": {...}}` as the whole answer; several with `;` between them.
    MISTRAL: `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, or `[TOOL_CALLS]name{...}`, at an answer's end. The
        first word is a special token, so that it is not in an answer's text.
    """

    HERMES = "hermes"
    LLAMA3 = "llama3"
    MISTRAL = "mistral"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call.

    Attributes:
        name: Of the function.
        arguments: A JSON object as text.
    """

    name: str
    arguments: str


def tool_format_of(templates: Iterable[str]) -> ToolFormat | None:
    """The format that chat templates teach; None if they teach none of these.

    Args:
        templates: Jinja.
    """
    text = "\n".join(each for each in templates if "tools" in each)
    if "[TOOL_CALLS]" in text:
        return ToolFormat.MISTRAL
    if "<tool_call>" in text:
        return ToolFormat.HERMES
    if "<|python_tag|>" in text or ("parameters" in text and "ipython" in text):
        return ToolFormat.LLAMA3
    return None


def call_grammar(format_: ToolFormat, tools: Mapping[str, Mapping[str, Any]]) -> str:
    """A grammar, in Lark's notation, of an answer that is one call.

    Args:
        format_: How it is written.
        tools: By name, the JSON schema of each tool's arguments.

    Raises:
        RequestError: two schemas define one name differently.
    """
    field = "parameters" if format_ is ToolFormat.LLAMA3 else "arguments"
    shared: dict[str, Any] = {}
    calls = []
    for name, schema in tools.items():
        for key, definition in schema.get("$defs", {}).items():  # references start from the whole schema
            if shared.setdefault(key, definition) != definition:
                raise RequestError(f"tools: {shown(key)} is defined twice; another name in $defs is needed")
        own = {key: value for key, value in schema.items() if key != "$defs"}
        properties = {"name": {"const": name}, field: own or {"type": "object"}}
        calls.append(
            {"type": "object", "properties": properties, "required": ["name", field], "additionalProperties": False}
        )
    before, after = _AROUND[format_]
    schema_ = json.dumps({"anyOf": calls, "$defs": shared, "x-guidance": dict(JSON_FORM)})
    return f"start: {before} call {after}\ncall: %json {schema_}"


class ToolCallReader:
    """Tells text from calls while an answer is written; text that may be the beginning of a call is held back."""

    def __init__(self, format_: ToolFormat | None, names: Sequence[str]) -> None:
        """Begin with nothing read.

        Args:
            format_: None takes all for text.
            names: The tools that there are. Where a call has no mark of its own, only one of these makes it a call.
        """
        self._format = format_
        self._names = frozenset(names)
        self._held = ""
        self._inside = False
        self._called = False  # nothing but white space came after the newest call

    def push(self, piece: str) -> list[str | ToolCall]:
        """What is certain now: pieces of text, and calls."""
        if self._format is None:
            return [piece] if piece else []
        self._held += piece
        if self._format is ToolFormat.HERMES:
            return list(self._tagged())
        if self._inside or self._may_be_call():
            return []
        text, self._held, self._format = self._held, "", None
        return [text]

    def finish(self) -> list[str | ToolCall]:
        """What was held back, when nothing follows."""
        held, self._held = self._held, ""
        if not held:
            return []
        if self._format is ToolFormat.HERMES:
            call = _call_of(_json(held.removeprefix(_OPEN))) if self._inside else None
        else:
            found = _llama(held, self._names) if self._format is ToolFormat.LLAMA3 else _mistral(held, self._names)
            return [*found] if found else [held]
        return [call] if call else [held]

    def _tagged(self) -> Iterable[str | ToolCall]:
        while True:
            if not self._inside:
                place = self._held.find(_OPEN)
                if place < 0:
                    keep = next((n for n in range(len(_OPEN) - 1, 0, -1) if self._held.endswith(_OPEN[:n])), 0)
                    text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
                    yield from self._between(text)
                    return
                yield from self._between(self._held[:place] if self._held[:place].strip() else "")
                self._held, self._inside = self._held[place:], True
            place = self._held.find(_CLOSE)
            if place < 0:
                return
            end = place + len(_CLOSE)
            whole, self._held, self._inside = self._held[:end], self._held[end:], False
            call = _call_of(_json(whole[len(_OPEN) : place]))
            self._called = call is not None
            yield call or whole

    def _between(self, text: str) -> Iterable[str]:
        """Text beside calls; white space after a call belongs to it."""
        text = text.lstrip() if self._called else text
        if text:
            self._called = False
            yield text

    def _may_be_call(self) -> bool:
        """Whether an answer that begins so may be a call."""
        begin = self._held.lstrip()
        if not begin:
            return True
        for mark in _MARKS[self._format]:
            if begin.startswith(mark[: len(begin)]):
                return True
        if self._format is ToolFormat.LLAMA3:
            return begin[0] == "{"
        named = any(begin.startswith(name) or name.startswith(begin) for name in self._names)
        return begin[0] == "[" or named


_AROUND: Mapping[ToolFormat, tuple[str, str]] = {
    ToolFormat.HERMES: ('"<tool_call>\\n"', '"\\n</tool_call>"'),
    ToolFormat.LLAMA3: ("", ""),
    ToolFormat.MISTRAL: ('"["', '"]"'),
}
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MARKS: dict[ToolFormat | None, tuple[str, ...]] = {
    ToolFormat.LLAMA3: ("<|python_tag|>",),
    ToolFormat.MISTRAL: ("[TOOL_CALLS]",),
}


def _llama(text: str, names: frozenset[str]) -> list[ToolCall]:
    """The calls that an answer is; none if any part of it is none, or of no tool that there is."""
    rest, calls = text.strip().removeprefix("<|python_tag|>").strip(), []
    while rest:
        value, end = _leading(rest)
        call = _call_of(value)
        if call is None or call.name not in names:
            return []
        calls.append(call)
        rest = rest[end:].lstrip().removeprefix(";").lstrip()
    return calls


def _mistral(text: str, names: frozenset[str]) -> list[ToolCall]:
    """The same for Mistral's two forms."""
    marked = "[TOOL_CALLS]" in text
    rest = text.strip().removeprefix("[TOOL_CALLS]").strip()
    value, end = _leading(rest)
    if isinstance(value, list) and not rest[end:].strip():
        calls = [_call_of(each) for each in value]
        known = [call for call in calls if call and (marked or call.name in names)]
        return known if len(known) == len(calls) else []
    calls_: list[ToolCall] = []
    while found := re.match(r"([\w.-]+)\s*(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)", rest):
        value, end = _leading(rest[found.end() :])
        if not isinstance(value, dict) or not (marked or found[1] in names):
            return []
        calls_.append(ToolCall(found[1], json.dumps(value, ensure_ascii=False)))
        rest = rest[found.end() + end :].strip().removeprefix("[TOOL_CALLS]")
    return [] if rest else calls_


def _json(text: str) -> Any:
    value, end = _leading(text.strip())
    return None if text.strip()[end:].strip() else value


def _leading(text: str) -> tuple[Any, int]:
    """The JSON value with which a text begins, and where it ends; None if there is none."""
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None, 0
    return value, end


def _call_of(value: Any) -> ToolCall | None:
    """The call that a JSON value is; None if it is none."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json(arguments)
    if not isinstance(arguments, dict):
        return None
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))
