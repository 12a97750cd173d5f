"""Quantized sources, from a spec to text: codes are kept, and answers are those of the weights they stand for."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from adaptc import runtime
from adaptc.cli import main
from adaptc.report.files import record_of
from adaptc.runtime.bundle.folder import open_bundle
from adaptc.verification.bundle_model import BundleModel
from tests.close import ENGINE, assert_close
from tests.models import folder
from tests.models.gguf_file import tiny_model, write
from tests.models.llama_cpp import LlamaCpp, needs_llama_cpp
from tests.sources.gguf.test_numbers import COUNT, TOKENS
from tests.sources.quantized.packing import FORMS, quantize

IDS = np.random.default_rng(0).integers(2, 60, 24)


def compiled(source: Path, into: Path, *options: str) -> tuple[Path, str]:
    """Compile a model with the command line and a spec that says nothing of weights; what it printed."""
    spec = into.with_suffix(".yaml")
    spec.write_text(f"version: 1\nmodels:\n  lm: {{source: {json.dumps(str(source))}}}\ntarget: {{max_tokens: 64}}\n")
    result = CliRunner().invoke(main, ["compile", str(spec), "-o", str(into), *options], prog_name="adaptc")
    assert result.exit_code == 0, result.output
    return into, result.stdout


@pytest.mark.parametrize("name", ["gptq-order", "int8-channel"])
def test_a_folder_answers_as_transformers_with_its_weights(name: str, tmp_path: Path) -> None:
    _, model = folder.write(tmp_path, "qwen2", num_hidden_layers=2)
    quantize(tmp_path / "model", FORMS[name], model)
    bundle, printed = compiled(tmp_path / "model", tmp_path / "bundle")
    assert "source's weights  14 of 16 tensors as they are, the others within" in printed
    opened = open_bundle(bundle)
    assert opened.manifest.graphs[opened.manifest.reader].decoder is not None
    assert record_of(opened).source_weights["mlp.up_proj"].exact == 2
    exact = BundleModel(opened, threads=1, exact=True)
    with torch.no_grad():
        expected = model(torch.from_numpy(IDS[None]), use_cache=False).logits[0].numpy()
    # The head and the embedding, floats in the folder, are in 8 bits.
    assert np.abs(exact.logits(IDS) - expected).max() < 0.02 * np.abs(expected).max()
    with runtime.load(bundle, threads=1) as session:
        asked = BundleModel(opened, threads=1)
        assert session.tokenizer is not None
        answer = session.generate("the cat", max_new_tokens=8)
        assert list(answer.ids) == asked.greedy(session.tokenizer.encode("the cat"), 8)[: len(answer.ids)]
    result = CliRunner().invoke(main, ["verify", str(bundle)], prog_name="adaptc")
    assert result.exit_code == 0, result.output


def test_a_whole_folder_of_codes_has_the_logits_of_transformers(tmp_path: Path) -> None:
    """Head and embedding too: nothing is rounded, so nothing but the order of sums differs."""
    from safetensors.torch import load_file, save_file

    _, model = folder.write(tmp_path, num_hidden_layers=1)
    path = tmp_path / "model"
    quantize(path, FORMS["gptq-head"], model)
    table = torch.randint(-128, 128, model.model.embed_tokens.weight.shape) / 128
    table[:, ::16], table[:, 1::16] = -1, 127 / 128  # so that the nearest codes of 8 bits are all of it
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(table)
    tensors = load_file(path / "model.safetensors")
    save_file(tensors | {"model.embed_tokens.weight": table}, path / "model.safetensors", {"format": "pt"})
    bundle, _ = compiled(path, tmp_path / "bundle")
    with torch.no_grad():
        expected = model(torch.from_numpy(IDS[None]), use_cache=False).logits[0].numpy()
    assert_close(BundleModel(open_bundle(bundle), threads=1, exact=True).logits(IDS), expected, **ENGINE)


@needs_llama_cpp
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_a_gguf_file_predicts_as_llama_cpp(kind: str, tmp_path: Path) -> None:
    model = tiny_model("llama", COUNT)
    path = write(tmp_path / "m.gguf", model, "llama", TOKENS, kind=gguf.GGMLQuantizationType[kind])
    bundle, printed = compiled(path, tmp_path / "bundle", "--set", "target.weights=source")
    assert "source's weights" in printed
    prompts = [IDS[:length].tolist() for length in (3, 12, 24)]
    llama_cpp = LlamaCpp()
    told = llama_cpp.log_probabilities(path, prompts, COUNT)
    llama_cpp.close()
    found = BundleModel(open_bundle(bundle), threads=1)
    for prompt, wanted in zip(prompts, told, strict=True):
        logits = found.logits(np.array(prompt))[-1].astype(np.float64)
        logs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        share = np.exp([wanted[token] for token in wanted])
        divergence = float((share * (np.log(share) - logs[list(wanted)])).sum())
        assert abs(divergence) < 0.01, "both round activations to 8 bits, each in its own way"


def test_weights_that_a_spec_names_are_made(tmp_path: Path) -> None:
    _, model = folder.write(tmp_path, num_hidden_layers=1)
    quantize(tmp_path / "model", FORMS["gptq"], model)
    bundle, printed = compiled(tmp_path / "model", tmp_path / "bundle", "--set", "target.weights=fp32")
    assert "source's weights" not in printed
    with torch.no_grad():
        expected = model(torch.from_numpy(IDS[None]), use_cache=False).logits[0].numpy()
    assert_close(BundleModel(open_bundle(bundle), threads=1).logits(IDS), expected, **ENGINE)


def test_source_is_refused_for_floats_and_for_engines_without_codes(tmp_path: Path) -> None:
    spec, _ = folder.write(tmp_path, num_hidden_layers=1)
    for settings, message in (
        (
            ("target.weights=source",),
            "weights: source keeps codes, and lm has none; int4, int8",
        ),
        (("target.weights=source", "target.backend=tensorrt"), "tensorrt does not run source"),
    ):
        options = [f"--set={setting}" for setting in settings]
        for command in (["compile", str(spec), "-o", str(tmp_path / "b")], ["check", str(spec)]):
            result = CliRunner().invoke(main, [*command, *options], prog_name="adaptc")
            assert result.exit_code == 1
            assert message in result.output
