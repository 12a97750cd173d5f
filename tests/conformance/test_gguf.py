"""The matrix of GGUF files: its rows, and `verify`'s own reading of such a file.

What each row computes, and which ids each `pre` gives, is held against llama.cpp in `tests/sources/gguf`: numbers by
architecture and key, ids by `tokenizer.ggml.pre`, tables by ggml type. Here it is checked that no row is missing.
"""

from __future__ import annotations

import numpy as np
import pytest

from adaptc.families.table import supported_gguf
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.sources.base import Source
from adaptc.sources.find import find_source
from adaptc.spec.schema import ModelSpec
from adaptc.verification.kinds.source import OWN_LOADER, load_source
from adaptc.verification.llama_cpp import LlamaCpp, installed
from adaptc.verification.outside import TorchModel
from adaptc.verification.probes import texts
from adaptc.verification.text import ids_part
from tests.models.gguf_file import tiny_model, write
from tests.sources.gguf.test_numbers import COUNT, FAMILIES, PROMPTS, TOKENS

needs_llama_cpp = pytest.mark.skipif(installed() is None, reason="llama.cpp is not installed")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    file = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write(file, tiny_model("qwen2", COUNT), "qwen2", TOKENS)
    return find_source(ModelSpec(source=str(file)), file.parent)


def test_every_architecture_has_a_row() -> None:
    assert set(supported_gguf()) <= {architecture for _, architecture, _, _ in FAMILIES.values()}


@needs_llama_cpp
def test_ids_are_llama_cpps(source: Source) -> None:
    probes = list(texts((), drawn=20))
    ours = Tokenizer(source.tokenizer_files())
    assert ids_part(ours, *_told(source, probes)).why == ()
    other = [text.replace("a", "b") for text in probes]
    name, _, special, plain = _told(source, other)
    assert ids_part(ours, name, probes, special, plain).verdict == "failed"


def _told(source: Source, probes: list[str]) -> tuple[str, list[str], list[list[int]], list[list[int]]]:
    text = LlamaCpp(source.path).text(probes)
    return text.name, probes, text.special, text.plain


@needs_llama_cpp
def test_llama_cpp_confirms_the_reference_or_refuses_it(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = PROMPTS[1:3]
    [part] = load_source(source, prompts, 1).parts
    assert (part.name, part.verdict) == ("source model", "passed")
    assert part.reference.startswith("llama.cpp (xllamacpp ")
    assert part.figures["mean_kl"] < 1e-6
    assert part.figures["positions"] == 40
    logits = TorchModel.logits
    monkeypatch.setattr(TorchModel, "logits", lambda self, *given: np.roll(logits(self, *given), 1, axis=1))
    loaded = load_source(source, prompts, 1)
    assert loaded.by == OWN_LOADER, "as nobody's reading is llama.cpp's"
    assert [each.verdict for each in loaded.parts] == ["failed"]
