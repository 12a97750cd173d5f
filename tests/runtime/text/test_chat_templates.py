"""Rendered prompts are those of transformers' `apply_chat_template`."""

# ruff: noqa: E501, ISC004  (a template on one line is read as one)

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from adaptc.runtime.errors import RequestError
from adaptc.runtime.text.tokenizer import Tokenizer
from tests.models.chat_templates import CHATML, DOCUMENTS, HEADERS, THINKING, TOOL_USE, TURNS
from tests.models.tiny_tokenizer import byte_level

transformers: Any = pytest.importorskip("transformers")  # the runtime alone is tested without it

TOKENS = {"bos_token": "<|start|>", "eos_token": "<|end|>", "image_token": "<image>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "The time <é>",
            "parameters": {
                "type": "object",
                "properties": {"zone": {"type": "string"}, "at": {"properties": {"x": {"type": "number"}}}},
            },
        },
    }
]
DOCS = [{"title": "One", "text": "first\nline"}, {"title": "Two", "text": "x"}]
ASK = {"role": "user", "content": " What time is it? "}
TALK = [{"role": "system", "content": "Be kind."}, ASK, {"role": "assistant", "content": "Noon."}, ASK]
PARTS = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "what is "}, {"type": "text", "text": "it"}],
    }
]
THOUGHT = [ASK, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nNoon", "tool_calls": None}]
REASONED = [ASK, {"role": "assistant", "content": "Noon", "reasoning": "hm", "name": None}]
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": {"zone": "é"}}}]}
CALLED = [ASK, CALL, {"role": "tool", "content": {"hour": 12}}]


def ours(template: str | list[dict[str, str]]) -> Tokenizer:
    config = json.dumps({**TOKENS, "chat_template": template}).encode()
    return Tokenizer({"tokenizer.json": byte_level().to_str().encode(), "tokenizer_config.json": config})


def theirs(template: str | Mapping[str, str]) -> Any:
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level(),
        bos_token=TOKENS["bos_token"],
        eos_token=TOKENS["eos_token"],
        model_specific_special_tokens={"image_token": TOKENS["image_token"]},
    )
    fast.chat_template = template
    return fast


def wanted(template: str | Mapping[str, str], messages: list[Any], **options: Any) -> str:
    options = {"add_generation_prompt": not options.get("continue_final_message"), **options}
    text: str = theirs(template).apply_chat_template(messages, tokenize=False, **options)
    return text


RENDERED: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "one message": (CHATML, [ASK], {}),
    "conversation": (CHATML, TALK, {}),
    "no generation prompt": (CHATML, TALK, {"add_generation_prompt": False}),
    "tools": (TOOL_USE, TALK, {"tools": TOOLS}),
    "a tuple of no tools": (TOOL_USE, TALK, {"tools": []}),
    "headers": (HEADERS, TALK, {}),
    "headers and tools": (HEADERS, [ASK], {"tools": TOOLS}),
    "headers and a variable": (HEADERS, [ASK], {"custom_tools": TOOLS, "date_string": "1 May"}),
    "a call": (HEADERS, CALLED, {"tools": TOOLS}),
    "turns": (TURNS, TALK, {}),
    "another token": (TURNS, TALK, {"bos_token": "<b>"}),
    "parts": (THINKING, PARTS, {}),
    "thoughts in the text": (THINKING, THOUGHT, {}),
    "thoughts beside the text": (THINKING, REASONED, {}),
    "thoughts by both names": (
        "{% for m in messages %}{{ m.thinking }}{{ m.reasoning_content }}{% endfor %}",
        REASONED,
        {},
    ),
    "no thinking": (THINKING, TALK, {"enable_thinking": False}),
    "documents": (DOCUMENTS, TALK + PARTS, {"documents": DOCS}),
    "documents and tools": (DOCUMENTS, TALK, {"documents": DOCS, "tools": TOOLS}),
    "go on": (CHATML, THOUGHT, {"continue_final_message": True}),
    "go on after a space": (
        HEADERS,
        [ASK, {"role": "assistant", "content": "It is "}],
        {"continue_final_message": True},
    ),
    "go on with a part": (THINKING, PARTS, {"continue_final_message": True}),
    "go on thinking": (
        "{% for m in messages %}<{{ m.thinking }}>{{ m.content }}{% endfor %}",
        REASONED,
        {"continue_final_message": "reasoning"},
    ),
    "special tokens": ("{{ bos_token }}{{ eos_token }}{{ image_token }}{{ pad_token is defined }}", [ASK], {}),
    "plain kinds": (
        "{{ x }}{{ y }}{{ z }}{{ messages[0] }}",
        [{"role": "user", "content": "a", 5: 6}],
        {"x": (1, None), "y": np.float64(1.5), "z": float("inf")},
    ),
    "an image object": (
        "{{ messages[0].content }}",
        [{"role": "user", "content": [{"type": "image", "image": np.ones(2)}]}],
        {},
    ),
    "scopes": ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", [ASK], {}),
    "numbers": (
        "{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ 1 / 3 }}{{ 3 * 'ab' }}{{ [1] * 3 }}{{ 'a' in 'abc' }}",
        [ASK],
        {},
    ),
    "methods": (
        "{% set t = messages[0].content %}{{ t.split() }}{{ t.replace('i', 'I').center(30, '*') }}{{ t.strip(' ?').upper() }}"
        "{{ '-'.join(['a', 'b']) }}{{ t.rfind('t') }}{{ '{0:>5}|{n}'.format('a', n=1) }}{{ t.encode('utf-8').decode() }}",
        [ASK],
        {},
    ),
    "loops": (
        "{% for x in range(3) recursive %}{{ loop.index }}/{{ loop.length }}{{ loop.cycle('a', 'b') }}{% endfor %}"
        "{% for x in [[1, [2]], [3]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}"
        "{% for x in [3, 1, 2] | sort if x > 1 %}{{ x }}{% else %}none{% endfor %}"
        "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% if loop.first %}{% continue %}{% endif %}{% break %}{% endfor %}",
        [ASK],
        {},
    ),
    "sums": (
        "{{ 'a' + 'b' + 'c' + 'd' + 'e' + 'f' + 'g' + 'h' + 'i' + 'j' + messages[0].role }}{{ 1 + 2 - 3 }}",
        [ASK],
        {},
    ),
    "what is made": (
        "{% set d = dict(a=1, **{'b': 2}) %}{{ d }}{{ dict.fromkeys(['x'], 0) }}{{ (1, messages[0].role) }}",
        [ASK],
        {},
    ),
}


@pytest.mark.parametrize("name", RENDERED)
def test_prompts_are_those_of_transformers(name: str) -> None:
    template, messages, options = RENDERED[name]
    assert ours(template).render(messages, options) == wanted(template, messages, **options)


NAMED = {"default": CHATML, "tool_use": TOOL_USE, "rag": DOCUMENTS}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tools": TOOLS},
        {"tools": []},
        {"chat_template": "rag", "documents": DOCS},
        {"chat_template": "default"},
        {"chat_template": TURNS},
    ],
)
def test_one_of_several_templates_is_taken_as_transformers_takes_it(options: dict[str, Any]) -> None:
    several = [{"name": name, "template": text} for name, text in NAMED.items()]
    assert ours(several).render(TALK, options) == wanted(NAMED, TALK, **options)


def test_a_request_may_bring_the_template() -> None:
    tokenizer = Tokenizer({"tokenizer.json": byte_level().to_str().encode()})
    assert tokenizer.render([ASK], {"chat_template": "{{ messages[0].role }}"}) == "user"


REFUSED = [
    (CHATML, [ASK], {"tools": TOOLS}, "tools: this model's chat template does not use tools; leave them out$"),
    (
        CHATML,
        [ASK],
        {"documents": DOCS},
        "documents: this model's chat template does not use documents; leave them out$",
    ),
    (
        THINKING,
        [ASK],
        {"enable_thinkin": False},
        "template: .* does not use 'enable_thinkin'; did you mean 'enable_thinking'",
    ),
    (CHATML, [ASK], {"zone": 1}, "template: .* does not use 'zone'; it uses: add_generation_prompt$"),
    (CHATML, [ASK], {"tools": [print]}, "tools: builtin_function_or_method; plain data is needed"),
    (CHATML, [ASK], {"tools": TOOLS[0]}, "tools: a list with a mapping for each is needed$"),
    (CHATML, [ASK], {"messages": []}, "template: messages; they are the conversation itself"),
    (CHATML, [ASK], {"chat_template": "rag"}, "chat_template: no template 'rag'; there are: default$"),
    (CHATML, [ASK], {"chat_template": 5}, "chat_template: int; a name or a Jinja template is needed$"),
    (CHATML, [ASK], {"chat_template": "{% for %}"}, "chat_template: not a chat template: "),
    (
        CHATML,
        [ASK],
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message: not with",
    ),
    (
        CHATML,
        [{"role": "user"}],
        {"continue_final_message": True},
        "continue_final_message: the last message has no text",
    ),
    (CHATML, [ASK], {"continue_final_message": "reasoning"}, "continue_final_message: the chat template does not use"),
    (
        "{{ 'content' }}",
        [ASK],
        {"continue_final_message": True},
        "continue_final_message: .* does not write the last message",
    ),
    (TURNS, [ASK, ASK], {}, "chat: the model's template refuses this: After the optional"),
    (CHATML, [{"role": "user", "content": object()}], {}, r"messages\[0\]: object; plain data is needed"),
]


@pytest.mark.parametrize(("template", "messages", "options", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refuses(template: str, messages: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=f"^{message}") as error:
        ours(template).render(messages, options)
    assert "\n" not in str(error.value)


def test_several_templates_without_a_default_want_a_name() -> None:
    tokenizer = ours([{"name": "rag", "template": CHATML}, {"name": "b", "template": TOOL_USE}])
    with pytest.raises(
        RequestError, match=r"^chat: this model has no default template; name one: chat_template: b, rag$"
    ):
        tokenizer.render([ASK])
    with pytest.raises(RequestError, match=r"^tools: .* does not use tools; chat_template: b does$"):
        tokenizer.render([ASK], {"tools": TOOLS, "chat_template": "rag"})


def test_the_callers_messages_stay_as_they_were() -> None:
    messages: list[Any] = [dict(ASK), {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]
    before = json.dumps(messages)
    ours(THINKING).render(messages, {"continue_final_message": True})
    assert json.dumps(messages) == before
