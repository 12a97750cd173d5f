"""From a GGUF file to an answer: what llama.cpp writes, where it ends, and what a stop string names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from adaptc import runtime
from adaptc.cli import main
from tests.models.gguf_file import tiny_model, write
from tests.models.llama_cpp import LlamaCpp, needs_llama_cpp
from tests.sources.gguf.vocabularies import byte_level, sentencepiece

TEMPLATE = (
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def compiled(path: Path) -> Path:
    """Check and compile a file with the command line; the bundle."""
    spec, bundle = path.with_suffix(".yaml"), path.with_suffix("")
    spec.write_text(
        f"version: 1\nmodels:\n  lm: {{source: {json.dumps(str(path))}}}\ntarget: {{weights: fp32, max_tokens: 64}}\n"
    )
    for command in (["check", str(spec)], ["compile", str(spec), "-o", str(bundle)]):
        result = CliRunner().invoke(main, command, prog_name="adaptc")
        assert result.exit_code == 0, result.stderr
    return bundle


@pytest.fixture(scope="module")
def turn_ender(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the first converters wrote Llama 3, without an id of <|eot_id|> and without add_bos_token.

    The model says <|stop_here|> after "a" and <|eot_id|> after anything else.
    """
    folder = tmp_path_factory.mktemp("llama3")
    base = byte_level("llama-bpe", chat_template=TEMPLATE)
    special = ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|stop_here|>"]
    tokens = dataclasses.replace(base, texts=[*base.texts, *special], kinds=[*base.kinds, 3, 3, 3, 3])
    model = tiny_model("llama", len(tokens.texts), hidden_size=32, intermediate_size=32, spread=0.02)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] += 5
        model.model.embed_tokens.weight[tokens.texts.index("a"), 1] = 50
        model.model.norm.weight.fill_(1)
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokens.texts.index("<|eot_id|>"), 0] = 5
        model.lm_head.weight[tokens.texts.index("<|stop_here|>"), 1] = 5
    return compiled(write(folder / "m.gguf", model, "llama", tokens))


def test_the_end_of_a_turn_ends_an_answer(turn_ender: Path) -> None:
    with runtime.load(turn_ender, threads=1) as session:
        answer = session.chat([{"role": "user", "content": "the cat"}], max_new_tokens=20)
        assert (answer.finish_reason, len(answer.ids), answer.text) == ("eos", 1, "")
        assert session.generate(" tiger", max_new_tokens=1).prompt_tokens == 2  # BOS, and a word that no merge makes


def test_a_stop_string_that_is_a_special_token_ends_an_answer(turn_ender: Path) -> None:
    with runtime.load(turn_ender, threads=1) as session:
        free = session.generate("a", max_new_tokens=20)
        assert (free.finish_reason, len(free.ids)) == ("eos", 2)
        for stop in ("<|stop_here|>", ["never", "<|stop_here|>"]):
            ended = session.generate("a", stop=stop, max_new_tokens=20)
            assert (ended.finish_reason, ended.ids, ended.text) == ("stop", free.ids[:1], "")
        stream = session.generate("a", stop="<|stop_here|>", max_new_tokens=20, stream=True)
        assert "".join(stream) == ""
        assert (stream.result.finish_reason, stream.result.ids) == ("stop", free.ids[:1])


@needs_llama_cpp
def test_text_is_what_llama_cpp_writes(tmp_path: Path) -> None:
    tokens = sentencepiece()
    model = tiny_model("gemma2", len(tokens.texts), sliding_window=7, query_pre_attn_scalar=16)
    path = write(tmp_path / "m.gguf", model, "gemma2", tokens)
    asked = {"n_predict": 24, "temperature": 0, "cache_prompt": False}
    prompts = ["the cat sat on the mat", " 日本語 123"]
    llama_cpp = LlamaCpp()
    wanted = llama_cpp.ask(path, "/completion", [{"prompt": prompt, **asked} for prompt in prompts])
    llama_cpp.close()
    with runtime.load(compiled(path), threads=1) as session:
        for prompt, answer in zip(prompts, wanted, strict=True):
            found = session.generate(prompt, max_new_tokens=24)
            assert found.text == answer["content"]
            assert found.prompt_tokens == answer["tokens_evaluated"]
            assert "".join(session.generate(prompt, max_new_tokens=24, stream=True)) == found.text
