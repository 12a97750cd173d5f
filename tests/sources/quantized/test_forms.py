"""Weights of every form that is read are the numbers that the form stands for, and so are their codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptc.errors import LoadError
from adaptc.sources.find import find_source
from adaptc.spec.schema import ModelSpec
from tests.close import assert_close
from tests.models import folder
from tests.sources.quantized.packing import FORMS, change, quantize

BIASED = "qwen2"
"""A family with biases, which quantizers leave as floats."""


def source(path: Path) -> Any:
    return find_source(ModelSpec(source="model"), path)


@pytest.mark.parametrize("name", FORMS)
def test_weights_are_what_the_form_stands_for(name: str, tmp_path: Path) -> None:
    form = FORMS[name]
    _, model = folder.write(tmp_path, BIASED, num_hidden_layers=1)
    state = quantize(tmp_path / "model", form, model).state_dict()
    found = source(tmp_path)
    assert found.quantization() == form.config["quant_method"]
    tensors, matrices = found.tensors(), found.matrices()
    assert tensors.keys() == state.keys()
    for weight, tensor in tensors.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[weight]), weight
    packed = {
        f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n not in form.skipped
    }
    assert matrices.keys() == {weight for weight, tensor in state.items() if tensor.ndim == 2}
    for weight, matrix in matrices.items():
        grid = matrix.read()
        assert (grid is not None) == (form.exact and weight in packed), weight
        assert matrix.rows == len(state[weight])
        if grid is not None:
            assert grid.codes.max() < grid.levels
            assert np.array_equal(grid.dense(), state[weight].numpy()), weight


def test_a_zero_point_of_none_is_stored_as_all_ones_by_the_first_format(tmp_path: Path) -> None:
    """Less one is below what bits hold, and borrows from its neighbour: GPTQModel takes ones from whole words."""
    _, model = folder.write(tmp_path, num_hidden_layers=1)
    path, form = tmp_path / "model", FORMS["gptq"]
    quantize(path, form, model)
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    points = torch.tensor([0, 3, 0, 15, 7, 0, 1, 8])
    word = sum(int(point) << (4 * place) for place, point in enumerate(points)) - 0x11111111
    tensors[f"{name}.qzeros"][0, 0] = word if word < 1 << 31 else word - (1 << 32)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    grid = source(tmp_path).matrices()[f"{name}.weight"].read()
    assert grid.zeros[:8, 0].tolist() == points.tolist()


def test_groups_of_several_sizes_lie_on_no_grid_and_are_read(tmp_path: Path) -> None:
    """As g_idx allows and nobody writes."""
    _, model = folder.write(tmp_path, num_hidden_layers=1)
    path, name = tmp_path / "model", "model.layers.0.mlp.down_proj"
    quantize(path, FORMS["gptq"], model)
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    before = source(tmp_path).tensors()[f"{name}.weight"].clone()
    codes = source(tmp_path).matrices()[f"{name}.weight"].read()
    places = tensors[f"{name}.g_idx"].clone()
    places[0] = 3
    save_file(tensors | {f"{name}.g_idx": places}, path / "model.safetensors", {"format": "pt"})
    found = source(tmp_path)
    assert found.matrices()[f"{name}.weight"].read() is None
    expected = before.numpy().copy()
    expected[:, 0] = (codes.codes[:, 0].astype(np.float32) - codes.zeros[:, 3]) * codes.scales[:, 3]
    assert_close(found.tensors()[f"{name}.weight"].numpy(), expected, rtol=0, atol=0)


def test_a_tied_head_stays_tied_and_a_quantized_head_of_its_own_does_not(tmp_path: Path) -> None:
    for tied, form in ((True, "gptq"), (False, "gptq-head")):
        path = tmp_path / form
        path.mkdir()
        _, model = folder.write(path, num_hidden_layers=1, tie_word_embeddings=tied)
        quantize(path / "model", FORMS[form], model)
        change(path / "model", tie_word_embeddings=True)
        assert source(path).config().tie_word_embeddings is tied


REMARKS = {
    "nf4": "its weights are bitsandbytes' 4 bits, numbers of a table that no kernel multiplies by: they are read as",
    "fp8-squares": "its weights are fp8, which no kernel of a CPU multiplies by: they are read as floats",
    "float8-tensor": "its weights are fp8, which no kernel of a CPU multiplies by: they are read as floats",
}


@pytest.mark.parametrize("name", ["gptq", "bnb-8", *REMARKS])
def test_weights_that_no_kernel_takes_are_told_of(name: str, tmp_path: Path) -> None:
    _, model = folder.write(tmp_path, num_hidden_layers=1)
    quantize(tmp_path / "model", FORMS[name], model)
    remarks = source(tmp_path).remarks()
    assert len(remarks) == (name in REMARKS)
    assert all(remark.startswith(REMARKS[name]) for remark in remarks)


def test_scales_of_activations_and_caches_are_told_of_and_not_read(tmp_path: Path) -> None:
    _, model = folder.write(tmp_path, num_hidden_layers=1)
    path = tmp_path / "model"
    form = FORMS["int8-channel"]
    state = quantize(path, form, model).state_dict()
    [group] = form.config["config_groups"].values()
    groups = {"group_0": group | {"input_activations": {"num_bits": 8, "type": "int", "strategy": "tensor"}}}
    change(path, quantization_config=form.config | {"config_groups": groups, "kv_cache_scheme": {"num_bits": 8}})
    from safetensors.torch import load_file, save_file

    layer = "model.layers.0.self_attn"
    more = {
        f"{layer}.k_scale": torch.ones(1),
        f"{layer}.v_scale": torch.ones(1),
        f"{layer}.q_proj.input_scale": torch.ones(1),
        f"{layer}.q_proj.input_zero_point": torch.zeros(1, dtype=torch.int8),
    }
    save_file(load_file(path / "model.safetensors") | more, path / "model.safetensors", {"format": "pt"})
    found = source(tmp_path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.tensors().items())
    activations, unread = found.remarks()
    assert activations.startswith("it was made to be run with quantized activations")
    assert unread.startswith(
        "4 scales of activations or of a KV cache are not read, as these are floats here: model.la"
    )


def test_weights_in_a_part_of_the_config_are_found(tmp_path: Path) -> None:
    """Of models with images the language model's config may say it."""
    from adaptc.sources.quantized.methods import method_of

    method = method_of("lm", {"text_config": {"quantization_config": FORMS["awq"].config}})
    assert method is not None
    assert method.name == "awq"
    assert method_of("lm", {"text_config": {}}) is None


def test_a_bundle_without_quantization_says_so(tmp_path: Path) -> None:
    folder.write(tmp_path)
    assert source(tmp_path).quantization() is None
    _, model = folder.write(tmp_path, num_hidden_layers=1)
    quantize(tmp_path / "model", FORMS["gptq"], model)
    change(tmp_path / "model", quantization_config=None)
    with pytest.raises(LoadError, match="I32"):  # weights that a config says nothing of
        source(tmp_path).tensors()
