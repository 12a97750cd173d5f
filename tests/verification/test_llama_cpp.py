"""Both packages that have llama.cpp are asked the same; here llama-cpp-python's, as its documents say it answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from adaptc.runtime.loading import tokenizer_of
from adaptc.sources.gguf.source import GgufSource
from adaptc.verification import llama_cpp, llama_cpp_process
from adaptc.verification.kinds.source import text_parts
from adaptc.verification.llama_cpp import LlamaCpp, LlamaCppText
from adaptc.verification.llama_cpp_process import LlamaCppPython, answer
from tests.models import attention_bundle

VOCAB = 5


class Llama:
    """llama_cpp.Llama: `eval` reads tokens after those that were read; `scores` has a row for each with logits_all."""

    def __init__(self, model_path: str, *, n_ctx: int, logits_all: bool, **options: Any) -> None:
        assert Path(model_path).name == "model.gguf"
        assert set(options) == {"n_threads", "n_threads_batch", "type_k", "type_v", "flash_attn", "verbose"}
        assert logits_all
        self.scores = np.full((n_ctx, VOCAB), np.nan, np.float32)
        self.n_tokens = 0

    def reset(self) -> None:
        self.n_tokens = 0

    def eval(self, tokens: list[int]) -> None:
        """After a token its successor is likeliest, and the one after that second."""
        for token in tokens:
            self.scores[self.n_tokens] = [-float((each - token - 1) % VOCAB) for each in range(VOCAB)]
            self.n_tokens += 1

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        assert special, "names of special tokens are these"
        return [0] * add_bos + list(text)

    def token_eos(self) -> int:
        return 4


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ModuleType("llama_cpp")
    vars(found).update(Llama=Llama, __version__="0.3.36")
    monkeypatch.setitem(sys.modules, "llama_cpp", found)


@pytest.mark.usefixtures("module")
def test_llama_cpp_python_is_asked_for_the_same() -> None:
    job = {"texts": ["ab", ""], "prompts": [[1, 2], [3]], "new_tokens": 3, "top": 2}
    said = answer(LlamaCppPython("model.gguf", 16, 1), job)
    assert json.loads(json.dumps(said)) == said | {
        "top": [[[list(each) for each in top] for top in tops] for tops in said["top"]]
    }
    assert said["version"] == "llama-cpp-python 0.3.36"
    assert (said["special"], said["plain"], said["end"]) == ([[0, 97, 98], [0]], [[97, 98], []], 4)
    assert said["written"] == [[3, 4, 0], [4, 0, 1]]
    likeliest, second = said["top"][0][0]
    assert (likeliest[0], second[0]) == (3, 4)
    assert np.exp(likeliest[1]) == pytest.approx(1 / np.exp(-np.arange(VOCAB)).sum())
    assert likeliest[1] - second[1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("there", "used"),
    [(["xllamacpp", "llama_cpp"], "xllamacpp"), (["llama_cpp"], "llama_cpp"), ([], None)],
)
def test_the_package_that_is_installed_is_asked(
    there: list[str], used: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name in there else None)
    assert llama_cpp.installed() == used
    assert used is None or used in llama_cpp_process.ASKED


@pytest.mark.parametrize(("end", "verdict"), [(1, "passed"), (7, "failed"), (None, "passed")])
def test_a_gguf_files_end_of_answers_must_end_the_bundles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: int | None, verdict: str
) -> None:
    made = attention_bundle.write(tmp_path / "bundle")
    spec = made.manifest.graphs[made.manifest.reader].decoder
    assert spec is not None
    assert 7 not in spec.eos_token_ids
    tokenizer = tokenizer_of(made)
    assert tokenizer is not None

    def text(_: LlamaCpp, texts: list[str]) -> LlamaCppText:
        special, plain = ([tokenizer.encode(each, added) for each in texts] for added in (True, False))
        return LlamaCppText("llama.cpp", special, plain, end if end != 1 else spec.eos_token_ids[0])

    monkeypatch.setattr(LlamaCpp, "text", text)
    monkeypatch.setattr("adaptc.verification.kinds.source.installed", lambda: "xllamacpp")
    _, parts = text_parts(made, GgufSource(tmp_path / "lm.gguf", "lm.gguf", "gguf"), 1)
    [part] = [each for each in parts if each.name == "ends of answers"]
    assert part.verdict == verdict, part
