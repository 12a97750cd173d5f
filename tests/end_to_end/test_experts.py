"""Models with experts through the whole line: a folder or a GGUF file, a bundle, and transformers' tokens.

Rows of a step choose different experts, prompts go through many, and every block may be skipped.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from adaptc import runtime
from adaptc.cli import main
from adaptc.compiler import tuning
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.errors import AdaptcError, LoadError, SpecError
from adaptc.runtime.backends.cuda.bundle_partitions import read_steps
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.gate_verdict import Payoff
from adaptc.sources.find import find_source
from adaptc.spec.reading import read_spec
from adaptc.spec.schema import ModelSpec
from adaptc.verification.rounded import put_weights, weight_faults
from adaptc.verification.stored_weights import stored_weights
from tests.close import ENGINE, assert_close
from tests.models import folder, gguf_file, tiny
from tests.models.llama_cpp import LlamaCpp, needs_llama_cpp
from tests.sources.gguf.vocabularies import byte_level

IDS = [5, 9, 40, 7, 101, 33, 12, 60]
PROMPTS = ([5, 9, 40], [101, 33, 12, 60, 7, 8], [44], [3, 3, 200, 17])


def write(path: Path, name: str, weights: str = "fp32", **changed: Any) -> tuple[Path, Any]:
    model_type, options = tiny.FAMILIES[name]
    return folder.write(path, model_type, weights, **{**options, **changed})


def compiled(spec: Path, *overrides: str) -> Any:
    return compile_spec(
        read_spec(spec, list(overrides)), spec.parent, spec.parent / "bundle", Cache(spec.parent / "cache")
    )


def expected(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = folder.greedy(model, prompt, count)
    return ids[: ids.index(1) + 1] if 1 in ids else ids


@pytest.mark.parametrize("name", tiny.WITH_EXPERTS)
def test_a_folder_s_model_writes_what_transformers_writes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, and in steps whose rows choose different experts; on a CPU, whatever is there."""
    spec, model = write(tmp_path, name)
    bundle = compiled(spec, "target.batch=4").bundle
    monkeypatch.setattr("adaptc.runtime.loading.gpu_at_hand", lambda _: True)
    with pytest.raises(runtime.BundleError, match="its model runs on a CPU only"):
        read_steps(bundle)
    with runtime.load(bundle.path, device="auto") as session:
        scores = session.score(IDS).values
        alone = session.generate(IDS, max_new_tokens=16)
        beside = session.generate(list(PROMPTS), max_new_tokens=12)
    assert_close(scores, folder.scores(model, IDS), **ENGINE)
    assert list(alone.ids) == expected(model, IDS, 16)
    assert [list(each.ids) for each in beside] == [expected(model, prompt, 12) for prompt in PROMPTS]


def test_experts_in_one_tensor_or_many_are_one_model(tmp_path: Path) -> None:
    _, model = write(tmp_path, "qwen3-moe")
    file = tmp_path / "model" / "model.safetensors"
    separate = load_file(file)
    assert "model.layers.0.mlp.experts.3.up_proj.weight" in separate, "as transformers writes them"
    apart = dict(find_source(ModelSpec(source="model"), tmp_path).tensors())
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, file, {"format": "pt"})
    together = dict(find_source(ModelSpec(source="model"), tmp_path).tensors())
    assert apart.keys() == together.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(apart[name], parameter)
        assert torch.equal(together[name], parameter)


def test_a_missing_matrix_of_an_expert_is_named(tmp_path: Path) -> None:
    write(tmp_path, "mixtral")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(LoadError, match=r"layers\.1\.mlp\.experts\.gate_up_proj: expert 2 of 4 has no w3\.weight"):
        find_source(ModelSpec(source="model"), tmp_path).tensors()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("target.backend=tensorrt", "4 experts in a block: they have no form for a GPU or TensorRT"),
        ("target.device=cuda", "4 experts in a block: they have no form for a GPU or TensorRT"),
    ],
)
def test_targets_without_a_form_of_experts_are_refused(override: str, said: str, tmp_path: Path) -> None:
    spec, _ = write(tmp_path, "qwen3-moe", "fp16")
    with pytest.raises(SpecError, match=said):
        compiled(spec, override)


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("mixtral", {"hidden_act": "gelu"}, "experts with gelu; hidden_act: silu is supported"),
        ("llama4", {"hidden_act": "gelu"}, "experts with gelu; hidden_act: silu is supported"),
        ("llama4", {"num_experts_per_tok": 2}, "num_experts_per_tok is 2, which makes another model .*; 1 is right"),
        ("llama4", {"attention_chunk_size": 0}, "attention_chunk_size is 0; a whole number from 1 to"),
        ("llama4", {"layer_types": ["sliding_attention"] * 3}, "adaptc captures full_attention and chunked_attention"),
        ("mixtral", {"layer_types": ["chunked_attention"] * 3}, "adaptc captures full_attention and sliding_attention"),
    ],
)
def test_other_experts_are_refused(name: str, changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    spec, _ = write(tmp_path, name)
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    with pytest.raises(SpecError, match=said):
        compiled(spec)


def test_chunks_have_no_form_for_tensorrt(tmp_path: Path) -> None:
    """Nor have experts, which are refused first: without them, and unless a chunk holds all positions."""
    spec, _ = write(tmp_path, "llama4", "fp16", moe_layers=[])
    with pytest.raises(AdaptcError, match=r"layers\.0\.self_attn: attention in chunks has no form for TensorRT"):
        compiled(spec, "target.backend=tensorrt")


ROUNDED = {"fp16": 0.001, "int8": 0.1, "int4": 0.7}
"""Kinds of weights, and how far the log probability of a token may be off in the mean."""


@pytest.mark.parametrize(
    ("weights", "inner", "size"), [("fp16", 40, 16), ("int8", 40, 16), ("int8", 32, 32), ("int4", 40, 16)]
)
def test_experts_are_stored_read_and_verified(weights: str, inner: int, size: int, tmp_path: Path) -> None:
    """No block of 16 ends where 40 columns do; of 32 columns a block of 32 is all."""
    spec, model = write(tmp_path, "qwen3-moe", weights, moe_intermediate_size=inner)
    bundle = compiled(spec, f"target.block_size={size}").bundle
    with runtime.load(bundle.path) as session:
        wrong = np.abs(session.score(IDS).values - folder.scores(model, IDS)).mean()
        assert 1e-7 < wrong < ROUNDED[weights]
        [one, *_] = session.generate([IDS, [7, 7]], max_new_tokens=8)
        assert list(one.ids) == list(session.generate(IDS, max_new_tokens=8).ids)
    errors = put_weights(copy.deepcopy(model), stored_weights(bundle))
    assert [each.name for each in errors if not each.bits] == []
    assert weight_faults(errors, "float32") == []
    if (weights, size) == ("int8", 32):
        assert_a_step_reads_two_of_four_experts(bundle, model, 1 + 4 / size)
        done = CliRunner().invoke(main, ["verify", str(bundle.path), "--base", str(tmp_path)])
        assert done.exit_code == 0, done.output
    if weights == "fp16":
        assert_a_step_reads_two_of_four_experts(bundle, model, 2)


def assert_a_step_reads_two_of_four_experts(bundle: Bundle, model: Any, each: float) -> None:
    """By the manifest and by `report.json`; `each` is what a weight takes, in bytes."""
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    experts = each * sum(size for name, size in sizes.items() if ".experts." in name)
    routers = 4 * sum(size for name, size in sizes.items() if name.endswith("mlp.gate.weight"))
    layers = json.loads((bundle.path / "report.json").read_text())["parts"]["lm"]
    blocks = sum(part["bytes"].get("feed-forward", 0) for part in layers)
    assert blocks == experts / 2 + routers
    stored = sum((bundle.path / file).stat().st_size for file in bundle.manifest.graphs["lm"].data)
    assert bundle.manifest.bytes_per_token < stored - 0.9 * experts / 2


def test_a_width_that_no_block_divides_is_refused(tmp_path: Path) -> None:
    spec, _ = write(tmp_path, "mixtral", "int4", hidden_size=40, num_attention_heads=5, num_key_value_heads=1)
    with pytest.raises(SpecError, match="experts over 40 columns: a multiple of 16 is right, or weights: fp32"):
        compiled(spec)


@needs_llama_cpp
@pytest.mark.parametrize(("name", "architecture"), [("qwen2-moe", "qwen2moe"), ("granite-moe", "granitemoe")])
def test_a_gguf_file_s_model_writes_what_llama_cpp_writes(name: str, architecture: str, tmp_path: Path) -> None:
    tokens = byte_level("qwen2")
    model_type, options = tiny.FAMILIES[name]
    model = gguf_file.tiny_model(model_type, len(tokens.texts), **options)
    file = gguf_file.write(tmp_path / "m.gguf", model, architecture, tokens)
    spec = tmp_path / "model.yaml"
    spec.write_text("version: 1\nmodels:\n  lm: {source: m.gguf}\ntarget: {weights: fp32, max_tokens: 64}\n")
    asked = {"n_predict": 24, "temperature": 0, "cache_prompt": False}
    prompts = ["the cat sat on the mat", " a tiger"]
    llama_cpp = LlamaCpp()
    wanted = llama_cpp.ask(file, "/completion", [{"prompt": prompt, **asked} for prompt in prompts])
    llama_cpp.close()
    with runtime.load(compiled(spec).bundle.path, threads=1) as session:
        found = [session.generate(prompt, max_new_tokens=24).text for prompt in prompts]
    assert found == [answer["content"] for answer in wanted]


def test_gates_over_blocks_of_experts_are_trained_and_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, model = write(tmp_path, "granite-moe")
    spec.write_text(spec.read_text() + "passes: [skip_ffn: {gates: g.safetensors, cheap: low_rank(4), warmup: 2}]\n")
    cache = ("--cache-dir", str(tmp_path / "cache"))
    options = ("--steps", "4", "--rows", "2", "--window", "32", "--sample", "600", *cache)
    done = CliRunner().invoke(main, ["train", str(spec), *options])
    assert done.exit_code == 0, done.stderr
    monkeypatch.setattr(tuning, "payoff", lambda *_: Payoff(1e-3, 1.01e-3, 0.8e-3, 3))
    bundle = compiled(spec).bundle
    [per_block] = set(bundle.manifest.graphs["lm"].skippable_bytes)
    with runtime.load(bundle.path, batch=2) as session:
        dense = session.generate(IDS, max_new_tokens=12, budget=1)
        alone = [session.generate(prompt, max_new_tokens=12, budget=0) for prompt in PROMPTS[:2]]
        beside = session.generate(list(PROMPTS[:2]), max_new_tokens=12, budget=0)
    assert list(dense.ids) == expected(model, IDS, 12)
    assert [each.ids for each in beside] == [each.ids for each in alone]
    assert any(each.trace.ffn_skipped > 0 for each in alone)
    layer = sum(each.numel() * 4 for name, each in model.named_parameters() if ".layers.0.block_sparse_moe" in name)
    router = model.model.layers[0].block_sparse_moe.router.weight.numel() * 4
    cheap = 4 * (3 * 4 * 32 + 32)  # 4 neurons, a bias
    assert per_block == pytest.approx((layer - router) // 2 + router - cheap, abs=16)
