"""Tool calls in the formats of the families, whatever pieces an answer comes in."""

from __future__ import annotations

import json

import pytest

from adaptc.runtime.text.tool_calls import ToolCall, ToolCallReader, ToolFormat, tool_format_of

NAMES = ("look", "add_up")
LOOK = ToolCall("look", '{"at": "é {\\"x\\"}"}')
ADD = ToolCall("add_up", '{"a": 1}')
LOOK_TAGGED = '<tool_call>{"name": "look", "arguments": {"at": "é {\\"x\\"}"}}</tool_call>'
LOOK_BARE = '{"name": "look", "parameters": {"at": "é {\\"x\\"}"}}'
CASES: list[tuple[ToolFormat | None, str, list[str | ToolCall]]] = [
    (ToolFormat.HERMES, '<tool_call>\n{"name": "add_up", "arguments": {"a": 1}}\n</tool_call>', [ADD]),
    (
        ToolFormat.HERMES,
        f"Well: {LOOK_TAGGED}\n" + '<tool_call>{"name": "add_up", "arguments": {"a": 1}}</tool_call>',
        ["Well: ", LOOK, ADD],
    ),
    (ToolFormat.HERMES, '<tool_call>{"name": "add_up", "arguments": "{\\"a\\": 1}"}', [ADD]),
    (ToolFormat.HERMES, "1 < 2 and <tool_cal", ["1 < 2 and <tool_cal"]),
    (ToolFormat.HERMES, "<tool_call>no JSON</tool_call> after", ["<tool_call>no JSON</tool_call> after"]),
    (ToolFormat.LLAMA3, '{"name": "add_up", "parameters": {"a": 1}}', [ADD]),
    (
        ToolFormat.LLAMA3,
        '<|python_tag|>{"name": "add_up", "parameters": {"a": 1}}; ' + LOOK_BARE,
        [ADD, LOOK],
    ),
    (ToolFormat.LLAMA3, '{"name": "unknown", "parameters": {}}', ['{"name": "unknown", "parameters": {}}']),
    (ToolFormat.LLAMA3, '{"name": "add_up", "parameters": {}} and', ['{"name": "add_up", "parameters": {}} and']),
    (ToolFormat.LLAMA3, "Just {text}", ["Just {text}"]),
    (ToolFormat.MISTRAL, '[TOOL_CALLS][{"name": "add_up", "arguments": {"a": 1}}]', [ADD]),
    (ToolFormat.MISTRAL, '[{"name": "add_up", "arguments": {"a": 1}}]', [ADD]),
    (ToolFormat.MISTRAL, 'add_up{"a": 1}', [ADD]),
    (ToolFormat.MISTRAL, '[TOOL_CALLS]add_up[ARGS]{"a": 1}', [ADD]),
    (ToolFormat.MISTRAL, "[1, 2, 3]", ["[1, 2, 3]"]),
    (ToolFormat.MISTRAL, "address", ["address"]),
    (None, '{"name": "add_up", "parameters": {"a": 1}}', ['{"name": "add_up", "parameters": {"a": 1}}']),
]


def joined(parts: list[str | ToolCall]) -> list[str | ToolCall]:
    """Neighbouring texts as one."""
    result: list[str | ToolCall] = []
    for part in parts:
        if isinstance(part, str) and result and isinstance(result[-1], str):
            result[-1] += part
        else:
            result.append(part)
    return result


@pytest.mark.parametrize(("format_", "text", "expected"), CASES, ids=range(len(CASES)))
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_calls_are_found_in_any_pieces(
    format_: ToolFormat | None, text: str, expected: list[str | ToolCall], size: int
) -> None:
    reader = ToolCallReader(format_, NAMES)
    parts: list[str | ToolCall] = []
    for start in range(0, len(text), size):
        parts += reader.push(text[start : start + size])
    assert joined([*parts, *reader.finish()]) == expected
    assert reader.finish() == []


def test_text_is_not_held_back_for_long() -> None:
    for format_ in ToolFormat:
        reader = ToolCallReader(format_, NAMES)
        assert "".join(str(each) for each in reader.push("The answer is ")) == "The answer is "


@pytest.mark.parametrize(
    ("template", "format_"),
    [
        ("{% for tool in tools %}<tool_call>{% endfor %}", ToolFormat.HERMES),
        ("{{ tools }}[TOOL_CALLS]", ToolFormat.MISTRAL),
        ("{{ tools }}<|python_tag|>", ToolFormat.LLAMA3),
        ("{% if tools %}'\"parameters\": ' ipython{% endif %}", ToolFormat.LLAMA3),
        ("{{ messages }}<tool_call>", None),
        ("{{ tools }}", None),
    ],
)
def test_a_template_tells_the_format(template: str, format_: ToolFormat | None) -> None:
    assert tool_format_of([template]) is format_


def test_arguments_are_json() -> None:
    for _, _, expected in CASES:
        for each in expected:
            assert isinstance(each, str) or isinstance(json.loads(each.arguments), dict)
