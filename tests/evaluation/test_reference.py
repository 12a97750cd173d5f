from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from adaptc.cli import main
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.errors import LoadError
from adaptc.evaluation.reference import Reference, folder_of, source_of
from adaptc.runtime import open_bundle
from adaptc.spec.reading import parse_spec
from adaptc.verification.outside import TorchModel
from tests.models import tiny_tokenizer
from tests.sources.test_sources import source, tiny, write_gguf

IDS = np.random.default_rng(0).integers(3, 90, 30)
TEXT = "the cat sat on the mat; the family sat on the cat. " * 9


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)), prog_name="adaptc")


def model() -> Any:
    return tiny("llama", vocab_size=340, num_hidden_layers=2, max_position_embeddings=128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model in a folder `lm`, and a bundle compiled from it beside it."""
    base = tmp_path_factory.mktemp("reference")
    model().save_pretrained(base / "lm")
    tiny_tokenizer.save(tiny_tokenizer.byte_level(), base / "lm")
    spec = parse_spec(
        "version: 1\nmodels: {lm: {source: lm}}\ntarget: {weights: fp32, max_tokens: 128}\n", "model.yaml"
    )
    compile_spec(spec, base, base / "bundle", Cache(base / "cache"))
    return base


def test_it_computes_what_transformers_does(folder: Path) -> None:
    reference, built = Reference(source(folder / "lm")), model()
    with torch.inference_mode():
        logits = built(torch.from_numpy(IDS)[None]).logits[0]
    np.testing.assert_array_equal(reference.logits(IDS), logits.numpy())
    scores = torch.log_softmax(logits[:-1], 1)[range(29), IDS[1:].tolist()]
    np.testing.assert_allclose(reference.log_probabilities(IDS), scores.numpy(), atol=1e-5)
    generated = built.generate(torch.from_numpy(IDS[:5])[None], max_new_tokens=12, min_new_tokens=12, do_sample=False)
    ends = set(np.atleast_1d(built.generation_config.eos_token_id).tolist())
    written = reference.greedy(IDS[:5].tolist(), 12)
    assert len(written) == 12
    if not ends & set(written):  # generate does not choose an end token before its time
        assert written == generated[0, 5:].tolist()


def test_bfloat16_is_near_and_not_the_same(folder: Path) -> None:
    exact, rounded = (Reference(source(folder / "lm"), dtype).logits(IDS) for dtype in ("float32", "bfloat16"))
    assert exact.dtype == rounded.dtype == np.float32
    assert 0 < np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


def test_a_folder_stays_where_it_is(folder: Path, tmp_path: Path) -> None:
    assert folder_of(source(folder / "lm"), "0" * 64, Cache(tmp_path)) == folder / "lm"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_file_becomes_a_dense_folder_once(tmp_path: Path, tied: bool) -> None:
    # The base that write_gguf writes.
    rope = {"rope_type": "default", "rope_theta": 20000.0}
    built = tiny("llama", tie_word_embeddings=tied, rope_parameters=rope)
    gguf, cache = source(write_gguf(tmp_path / "model.gguf", built, "llama")), Cache(tmp_path / "cache")
    made = folder_of(gguf, "1" * 64, cache)
    assert folder_of(gguf, "1" * 64, cache) == made
    loaded = transformers.AutoModelForCausalLM.from_pretrained(made).eval()
    with torch.inference_mode():
        expected = built(torch.from_numpy(IDS)[None]).logits[0].numpy()
        np.testing.assert_allclose(loaded(torch.from_numpy(IDS)[None]).logits[0].numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(Reference(gguf).logits(IDS), expected, atol=1e-5)
    assert (made / "tokenizer.json").exists()


def test_a_source_is_found_again_from_its_folder(folder: Path) -> None:
    bundle = open_bundle(folder / "bundle")
    assert source_of(bundle, folder).path == folder / "lm"
    with pytest.raises(LoadError, match="--base names the folder that paths in the spec start from"):
        source_of(bundle, folder / "elsewhere")


def test_verify_passes_and_eval_agrees(folder: Path, tmp_path: Path) -> None:
    shown = run("verify", folder / "bundle", "--base", folder, "--json", "--threads", 1)
    assert shown.exit_code == 0, shown.stderr
    result = json.loads(shown.stdout)
    assert result["passed"]
    assert result["same_tokens"] == 20
    assert result["max_logit_error"] <= 1e-3
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    arguments = ("--text", text, "--base", folder, "--cache-dir", tmp_path, "--window", 64, "--json", "--threads", 1)
    shown = run("eval", folder / "bundle", *arguments)
    assert shown.exit_code == 0, shown.stderr
    result = json.loads(shown.stdout)
    assert result["perplexity"] == pytest.approx(result["dense_perplexity"], rel=1e-4)
    assert result["ratio"] == pytest.approx(1, rel=1e-4)
    assert result["tokens"] > 100


def test_a_source_that_changed_is_refused(folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    weights = load_file(base / "lm" / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    save_file(weights, base / "lm" / "model.safetensors", {"format": "pt"})
    shown = run("verify", base / "bundle", "--base", base)
    assert shown.exit_code == 1
    assert shown.stderr == f"Error: lm: changed since {base / 'bundle'} was compiled from it; compile again\n"


def test_verify_fails_if_the_numbers_are_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = TorchModel.logits
    monkeypatch.setattr(TorchModel, "logits", lambda self, *given: logits(self, *given) * np.float32(1.01))
    shown = run("verify", folder / "bundle", "--base", folder, "--threads", 1)
    assert shown.exit_code == 1
    error = shown.stderr.splitlines()[-1]
    assert error.startswith(f"Error: {folder / 'bundle'}: not its source model in fp32: lowering: a logit is off by ")
