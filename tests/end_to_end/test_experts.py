"""Models with experts through the whole line: a folder or a GGUF file, a bundle, and transformers' tokens.

Rows of a step choose different experts, prompts go through many, and every block may be skipped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adaptc import runtime
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.errors import LoadError, SpecError
from adaptc.sources.find import find_source
from adaptc.spec.reading import read_spec
from adaptc.spec.schema import ModelSpec
from tests.close import ENGINE, assert_close
from tests.models import folder, tiny

IDS = [5, 9, 40, 7, 101, 33, 12, 60]
PROMPTS = ([5, 9, 40], [101, 33, 12, 60, 7, 8], [44], [3, 3, 200, 17])
NAMES = ("mixtral", "qwen2-moe", "qwen3-moe", "qwen3-moe-some", "granite-moe", "olmoe")


def write(path: Path, name: str, weights: str = "fp32") -> tuple[Path, Any]:
    model_type, options = tiny.FAMILIES[name]
    return folder.write(path, model_type, weights, **options)


def compiled(spec: Path, *overrides: str) -> Any:
    return compile_spec(
        read_spec(spec, list(overrides)), spec.parent, spec.parent / "bundle", Cache(spec.parent / "cache")
    )


def expected(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = folder.greedy(model, prompt, count)
    return ids[: ids.index(1) + 1] if 1 in ids else ids


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_s_model_writes_what_transformers_writes(name: str, tmp_path: Path) -> None:
    spec, model = write(tmp_path, name)
    bundle = compiled(spec).bundle
    with runtime.load(bundle.path) as session:
        scores = session.score(IDS).values
        result = session.generate(IDS, max_new_tokens=16)
    assert_close(scores, folder.scores(model, IDS), **ENGINE)
    assert list(result.ids) == expected(model, IDS, 16)


@pytest.mark.parametrize("name", ["qwen2-moe", "granite-moe"])
def test_rows_that_choose_different_experts_are_each_alone(name: str, tmp_path: Path) -> None:
    spec, model = write(tmp_path, name)
    bundle = compiled(spec, "target.batch=4").bundle
    with runtime.load(bundle.path) as session:
        results = session.generate(list(PROMPTS), max_new_tokens=12)
    assert [list(each.ids) for each in results] == [expected(model, prompt, 12) for prompt in PROMPTS]


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


def test_other_experts_are_refused(tmp_path: Path) -> None:
    spec, _ = write(tmp_path, "mixtral")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hidden_act": "gelu"}))
    with pytest.raises(SpecError, match="experts with gelu; hidden_act: silu is supported"):
        compiled(spec)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_rounded_experts_predict_as_eager_ones_nearly(weights: str, tmp_path: Path) -> None:
    spec, model = write(tmp_path, "qwen2-moe", weights)
    bundle = compiled(spec, "target.block_size=16").bundle
    with runtime.load(bundle.path) as session:
        scores = session.score(IDS).values
        [one, *_] = session.generate([IDS, [7, 7]], max_new_tokens=8)
        assert list(one.ids) == list(session.generate(IDS, max_new_tokens=8).ids)
    wrong = np.abs(scores - folder.scores(model, IDS)).mean()
    assert wrong < {"int8": 0.1, "int4": 0.7}[weights]
    assert wrong > 1e-6, "or nothing was rounded"
