"""Answers of a form that was asked for: JSON, a schema, a choice, and calls of tools."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adaptc.runtime.server.endpoints.parts import ServerParts
from tests.models.history_lm import decoder_spec
from tests.server.served import ask, by_hand, error_of, events, message, parts_of

pytest.importorskip("llguidance", reason="the extra serve is not installed here")

CHAT = "/v1/chat/completions"
SPEC = decoder_spec(vocab=324, max_tokens=1000, eos=(1,))
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "é"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for call in m.tool_calls or [] %}"
    "CALL{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}; {% endfor %}"
)


def parts(mark: str = "") -> ServerParts:
    """A model whose template teaches the format that `mark` is of."""
    return parts_of(by_hand(spec=SPEC, template=TEMPLATE + "{% if tools %}" + mark + "{% endif %}"))


def asked(**more: Any) -> dict[str, Any]:
    return {"messages": message("x"), "temperature": 0, "max_tokens": 700, **more}


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}}},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
    ],
)
def test_a_schema_is_followed(form: dict[str, Any], temperature: int) -> None:
    body = asked(temperature=temperature, seed=3, **form)
    answer = ask(parts(), CHAT, body).json()["choices"][0]
    assert answer["finish_reason"] == "stop"
    value = json.loads(answer["message"]["content"])
    assert value.keys() == {"a", "b"}
    told = events(ask(parts(), CHAT, {**body, "stream": True}))
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in told) == answer["message"]["content"]


def test_choices_and_expressions_are_followed() -> None:
    server = parts()
    for form, right in (
        ({"choice": ["yes", "no"]}, {"yes", "no"}),
        ({"regex": "(ab|cd){2}"}, {"abab", "abcd", "cdab", "cdcd"}),
    ):
        for path, text in ((CHAT, None), ("/v1/completions", "x")):
            body = asked(structured_outputs=form)
            if text is not None:
                del body["messages"]
                body["prompt"] = text
            choice = ask(server, path, body).json()["choices"][0]
            assert (choice["text"] if text else choice["message"]["content"]) in right
            assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema.schema: missing; a JSON schema is needed",
        ),
        ({"structured_outputs": {"regex": "("}}, "a valid regex is needed"),
        ({"structured_outputs": {"json": "{"}}, "a JSON schema is needed"),
        (
            {"structured_outputs": {"json": True, "regex": "a"}},
            "several grammars (response_format and tool_choice are too); one is needed",
        ),
        (
            {"structured_outputs": {"regex": "a"}, "min_tokens": 3},
            "min_tokens: not with a grammar, which says when an answer ends",
        ),
        (
            {"response_format": {"type": "xml"}},
            "response_format.type: 'xml'; one of 'text', 'json_object', 'json_schema' is needed",
        ),
    ],
)
def test_a_wrong_form_is_refused(form: dict[str, Any], said: str) -> None:
    answer = ask(parts(), CHAT, asked(**form))
    assert answer.status_code == 400
    assert error_of(answer)["message"].endswith(said)


WRITTEN = [
    ("<tool_call>", '<tool_call>{"name": "look", "arguments": {"at": 1}}</tool_call>'),
    ("<|python_tag|>", '{"name": "look", "parameters": {"at": 1}}'),
    ("[TOOL_CALLS]", '[{"name": "look", "arguments": {"at": 1}}]'),
]


@pytest.mark.parametrize(("mark", "written"), WRITTEN, ids=["hermes", "llama3", "mistral"])
def test_a_call_is_told_as_a_call(mark: str, written: str) -> None:
    server = parts(mark)
    body = asked(tools=TOOLS, structured_outputs={"choice": [written]})
    choice = ask(server, CHAT, body).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    [call] = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]) == ("function", {"name": "look", "arguments": '{"at": 1}'})
    told = [each["choices"][0] for each in events(ask(server, CHAT, {**body, "stream": True}))]
    [streamed] = [each["delta"]["tool_calls"] for each in told if "tool_calls" in each["delta"]]
    assert (streamed[0]["index"], streamed[0]["function"]) == (0, call["function"])
    assert told[-1]["finish_reason"] == "tool_calls"
    assert not any(each["delta"].get("content") for each in told)
    assert len(call["id"]) == (9 if mark == "[TOOL_CALLS]" else 29)


def test_without_tools_a_call_is_text() -> None:
    mark, written = WRITTEN[0]
    server = parts(mark)
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = ask(server, CHAT, asked(structured_outputs={"choice": [written]}, **more)).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (written, "stop")


def test_the_template_is_given_tools_and_earlier_calls() -> None:
    server = parts(WRITTEN[0][0])
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": [1]}'}}
    messages = [
        *message("x"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "seen"},
    ]
    ids = ask(server, "/tokenize", {"messages": messages, "tools": TOOLS}).json()["tokens"]
    text = ask(server, "/detokenize", {"tokens": ids}).json()["prompt"]
    assert text.startswith(json.dumps(TOOLS[0]))
    assert text.endswith('user: x; assistant: CALLlook{"at": [1]}; tool: seen; <tool_call>')
    wrong = [*message("x"), {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]
    assert error_of(ask(server, CHAT, {"messages": wrong}))["message"] == (
        "messages: arguments of a tool call that are no JSON; a JSON object as text is needed"
    )


PARAMETERS = {
    "type": "object",
    "properties": {"at": {"$ref": "#/$defs/place"}},
    "required": ["at"],
    "additionalProperties": False,
    "$defs": {"place": {"enum": ["here", "there"]}},
}
OTHERS = [*TOOLS, {"type": "function", "function": {"name": "go", "parameters": PARAMETERS}}]


@pytest.mark.parametrize("mark", [each[0] for each in WRITTEN], ids=["hermes", "llama3", "mistral"])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "go"}}])
def test_a_call_that_must_be_is_one(mark: str, choice: Any) -> None:
    body = asked(tools=OTHERS if choice != "required" else OTHERS[1:], tool_choice=choice, temperature=1, seed=5)
    choice = ask(parts(mark), CHAT, body).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    [call] = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "go"
    assert json.loads(call["function"]["arguments"])["at"] in ("here", "there")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice: no tool 'x'; there are: look, go",
        ),
        ({"tool_choice": "required", "tools": None}, "tool_choice: without tools; leave it out, or give tools"),
        ({"tool_choice": "always"}, "tool_choice: 'always'; one of 'none', 'auto', 'required' is needed"),
        (
            {"tool_choice": "required", "structured_outputs": {"regex": "a"}},
            "structured_outputs: several grammars (response_format and tool_choice are too); one is needed",
        ),
    ],
)
def test_a_call_that_cannot_be_is_refused(more: dict[str, Any], said: str) -> None:
    answer = ask(parts("<tool_call>"), CHAT, {**asked(tools=OTHERS), **more})
    assert answer.status_code == 400
    assert error_of(answer)["message"] == said


def test_a_template_without_a_known_form_cannot_be_made_to_call() -> None:
    answer = ask(parts(), CHAT, asked(tools=TOOLS, tool_choice="required"))
    assert error_of(answer)["message"] == (
        "tool_choice: this model's template teaches no known form of calls; 'auto' is right"
    )
