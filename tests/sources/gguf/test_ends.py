"""Where answers end and what a chat begins with is llama.cpp's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from adaptc.sources.find import find_source
from adaptc.spec.schema import ModelSpec
from tests.models.gguf_file import Tokens
from tests.models.llama_cpp import LlamaCpp, needs_llama_cpp
from tests.sources.gguf.test_tokenizers import carrier, tokenizer
from tests.sources.gguf.vocabularies import byte_level

# Texts that llama.cpp looks for, and some that look like them.
_KNOWN = """<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS]
<eos> <turn|> <|end_of_text|> <end_of_utterance> <|fim_prefix|> <|fim_suffix|> <|fim_middle|>
<|fim_pad|> <|file_sep|> <reponame> <｜end▁of▁sentence｜> <|im_start|> <|start|> <|message|>
<|assistant|>"""
KNOWN = _KNOWN.split()
HARMONY = ["<|return|>", "<|call|>", "<|end|>", "<|start|>", "<|channel|>", "<|message|>", "<|endoftext|>"]


def with_tokens(texts: list[str], kind: int, **more: int) -> Tokens:
    base = byte_level("qwen2")
    texts = [text for text in texts if text not in base.texts]
    return dataclasses.replace(
        base,
        texts=[*base.texts, *texts],
        kinds=[*base.kinds, *[kind] * len(texts)],
        more={**base.more, **{f"ggml.{key}_token_id": value for key, value in more.items()}},
    )


@needs_llama_cpp
@pytest.mark.parametrize(
    ("texts", "kind", "more"),
    [
        (KNOWN, 3, {}),
        (KNOWN, 1, {}),
        (HARMONY, 3, {}),
        (["<|tool_response>"], 4, {}),
        (["<|call|>", "<|flush|>", "<|end|>"], 3, {}),
        ([], 1, {"eot": 7, "eom": 9, "fim_pad": 10, "fim_sep": 11, "fim_pre": 12}),
        ([], 1, {"eot": 100_000, "eos": 100_000}),
    ],
)
def test_ends_are_llama_cpp_s(
    texts: list[str], kind: int, more: dict[str, int], tmp_path: Path, llama_cpp: LlamaCpp
) -> None:
    tokens = with_tokens(texts, kind, **more)
    path = carrier(tmp_path / "m.gguf", tokens)
    found = find_source(ModelSpec(source=str(path)), tmp_path).token_ids()
    tried = [*range(16), *range(len(byte_level("qwen2").texts), len(tokens.texts))]
    assert sorted(set(found.eos) & set(tried)) == llama_cpp.ends(path, tried)
    words = [f"a{text}b" for text in texts]
    ours = tokenizer(path)
    assert [ours.encode(word) for word in words] == llama_cpp.tokenize(path, words)


CHATS = [
    [{"role": role, "content": role[:2]} for role in roles.split()] for roles in ("user", "system user assistant user")
]
PLAIN = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
INDENTED = "   {% if true %}\n   {% for m in messages %}\n{{ m['content'] }}|{% endfor %}\n  {% endif %}\n"


@needs_llama_cpp
@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("template", [PLAIN, "{{ bos_token }}" + PLAIN, "<s>" + PLAIN, INDENTED])
def test_a_chat_is_what_llama_cpp_reads(template: str, add_bos: bool, tmp_path: Path, llama_cpp: LlamaCpp) -> None:
    tokens = byte_level("qwen2", **{"chat_template": template, "ggml.add_bos_token": add_bos})
    path = carrier(tmp_path / "m.gguf", tokens)
    ours = tokenizer(path)
    for chat in CHATS:
        [wanted] = llama_cpp.tokenize(path, [llama_cpp.prompt(path, chat)])
        assert ours.encode(ours.render(chat, {}), special=False) == wanted


def test_named_templates_are_kept(tmp_path: Path) -> None:
    more = {"chat_template": "default", "chat_template.tool_use": "tools {{ tools }}", "chat_templates": ["tool_use"]}
    ours = tokenizer(carrier(tmp_path / "m.gguf", byte_level("qwen2", **more)))
    chat = [{"role": "user", "content": "a"}]
    assert ours.render(chat, {}) == "default"
    assert ours.render(chat, {"tools": [{"name": "f"}]}).startswith("tools")
