"""What is not read is refused with a line that says what is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adaptc.errors import LoadError
from adaptc.sources.find import find_source
from adaptc.spec.schema import ModelSpec
from tests.models import folder
from tests.sources.quantized.packing import FORMS, change, quantize

UP = "model.layers.0.mlp.up_proj"


def source(path: Path) -> Any:
    return find_source(ModelSpec(source="model"), path)


def weights(of: str, **values: Any) -> dict[str, Any]:
    """A form's config with other values for its weights."""
    config = FORMS[of].config
    [group] = config["config_groups"].values()
    return config | {"config_groups": {"group_0": group | {"weights": group["weights"] | values}}}


CONFIGS: list[tuple[dict[str, Any], str]] = [
    (
        {"quant_method": "quip#"},
        "its weights are quantized by quip#; gptq, awq, compressed-tensors, bitsandbytes, fp8 are",
    ),
    ({}, "its weights are quantized by an unnamed method; gptq, awq"),
    ({"quant_method": ["gptq"]}, "its weights are quantized by ['gptq']; gptq"),
    ({"quant_method": "gptq", "bits": 3}, "GPTQ in 3 bits; 2, 4, 8 are read"),
    ({"quant_method": "gptq", "bits": "4"}, "quantization_config: bits is 4; a whole number is right"),
    ({"quant_method": "gptq"}, "quantization_config: bits is None; a whole number is right"),
    (FORMS["gptq"].config | {"checkpoint_format": "marlin"}, "GPTQ in the format 'marlin'; gptq and gptq_v2 are read"),
    (FORMS["gptq"].config | {"checkpoint_format": {}}, "GPTQ in the format '{}'; gptq and gptq_v2 are read"),
    (FORMS["gptq"].config | {"dynamic": {"+:.*up": {"bits": 8}}}, "GPTQ with rules for some modules (dynamic)"),
    (
        FORMS["gptq"].config | {"group_size": 0},
        "quantization_config: group_size is 0; -1 or a positive number is right",
    ),
    (FORMS["awq"].config | {"version": "gemv"}, "AWQ in 4 bits, version gemv; 4 bits, gemm, are read"),
    (FORMS["awq"].config | {"bits": 8}, "AWQ in 8 bits, version gemm; 4 bits, gemm, are read"),
    (
        FORMS["pack"].config | {"format": "marlin-24"},
        "compressed-tensors in the format marlin-24; pack-quantized, int-",
    ),
    (FORMS["pack"].config | {"format": None}, "compressed-tensors in the format None; pack-quantized"),
    (FORMS["pack"].config | {"config_groups": {}}, "quantization_config has no config_groups; the file is damaged"),
    (FORMS["pack"].config | {"config_groups": {"a": 3}}, "a config group without weights and targets; the file is"),
    (
        FORMS["pack"].config | {"sparsity_config": {"format": "sparse-24-bitmask"}},
        "compressed-tensors with sparse weight",
    ),
    (
        FORMS["pack"].config | {"transform_config": {"config_groups": {"u": {"type": "hadamard"}}}},
        "compressed-tensors with rotations (transform_config), which are not computed",
    ),
    (weights("pack", type="float"), "compressed-tensors floats of 4 bits; 8 are read"),
    (
        weights("pack", strategy="tensor_group"),
        "compressed-tensors weights of int of 4 bits by tensor_group; int or flo",
    ),
    (weights("pack", group_size=None), "group_size is None; a positive number is right"),
    (weights("float8-block", block_structure=[16]), "block_structure is [16]; two numbers are right"),
    ({"quant_method": "bitsandbytes"}, "quantization_config: load_in_4bit or load_in_8bit is right, one of them"),
    ({"quant_method": "fp8", "fmt": "e5m2"}, "fp8 in the format e5m2; e4m3 is read"),
    (
        {"quant_method": "fp8", "weight_block_size": [128]},
        "quantization_config: weight_block_size is [128]; two positive",
    ),
]


@pytest.mark.parametrize(("config", "message"), CONFIGS, ids=range(len(CONFIGS)))
def test_configs(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder.write(tmp_path, num_hidden_layers=1)
    change(tmp_path / "model", quantization_config=config)
    with pytest.raises(LoadError, match=re.escape(message)) as caught:
        source(tmp_path).config()
    assert "\n" not in str(caught.value)


def test_a_target_that_is_no_pattern(tmp_path: Path) -> None:
    config = FORMS["pack"].config
    [group] = config["config_groups"].values()
    folder.write(tmp_path, num_hidden_layers=1)
    groups = {"group_0": group | {"targets": ["re:.*(up"]}}
    change(tmp_path / "model", quantization_config=config | {"config_groups": groups})
    with pytest.raises(LoadError, match=r"target re:\.\*\(up is no pattern"):
        source(tmp_path).config()


def read(path: Path) -> None:
    """Read one matrix, by its codes and as floats."""
    found = source(path)
    found.matrices()[f"{UP}.weight"].read()
    found.tensors()[f"{UP}.weight"]


CHANGES: list[tuple[str, dict[str, Any], str]] = [
    ("gptq", {"scales": None}, f"{UP}: no scales, which weights quantized by gptq have"),
    ("gptq", {"qweight": None}, f"{UP}: g_idx, qzeros, scales make no weight of gptq"),
    ("gptq", {"qweight": torch.int64}, f"{UP}: qweight is I64; I32 is right"),
    ("gptq-order", {"g_idx": None}, f"{UP}: no g_idx, which desc_act needs"),
    ("gptq", {"g_idx": 7}, f"{UP}: g_idx names group 7 of 2; the file is damaged, or group_size is wrong"),
    ("gptq", {"qzeros": slice(1)}, f"{UP}: qzeros is [1, 8]; by its config it should be [2, 8]"),
    ("awq", {"qzeros": None}, f"{UP}: no qzeros, which weights quantized by awq have"),
    ("pack", {"weight_shape": None}, f"{UP}: no weight_shape, which weights quantized by compressed-tensors have"),
    ("pack-zeros", {"weight_zero_point": None}, f"{UP}: no weight_zero_point, which weights quantized by compressed-"),
    ("pack", {"weight_scale": slice(3)}, f"{UP}: weight_scale is [3, 2]; by its config it should be [64, 2]"),
    ("int8-channel", {"weight_scale": None}, f"{UP}: no weight_scale, which weights quantized by"),
    (
        "int8-zeros",
        {"weight_zero_point": slice(3)},
        f"{UP}: weight_zero_point is I8 [3, 1]; whole numbers [64, 1] are r",
    ),
    ("float8-channel", {"weight": torch.float8_e5m2}, f"{UP}: weight is F8_E5M2; F8_E4M3 is right"),
    (
        "fp8-squares",
        {"weight_scale_inv": slice(1)},
        f"{UP}: weight_scale_inv is [1, 1]; by its config it should be [4, 1]",
    ),
    ("nf4", {"weight.absmax": None}, f"{UP}: no weight.absmax, which weights quantized by bitsandbytes have"),
    ("nf4", {"weight": slice(8)}, f"{UP}: weight is U8 [8, 1]; 1024 bytes are right"),
    (
        "nf4",
        {"weight.quant_state.bitsandbytes__nf4": slice(9)},
        f"{UP}: weight.quant_state.bitsandbytes__… is no state",
    ),
    ("nf4-nested", {"weight.nested_absmax": None}, f"{UP}: no weight.nested_absmax, which"),
    ("bnb-8", {"weight_format": 2}, f"{UP}: weight_format is that of a GPU's tiles; rows (0) are right"),
    ("bnb-8", {"SCB": None}, f"{UP}: no SCB, which weights quantized by bitsandbytes have"),
]


@pytest.mark.parametrize(("name", "changed", "message"), CHANGES, ids=range(len(CHANGES)))
def test_pieces(name: str, changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    """A piece is left out, filled with a number, cut or of another type."""
    _, model = folder.write(tmp_path, num_hidden_layers=1)
    quantize(tmp_path / "model", FORMS[name], model)
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    for leaf, how in changed.items():
        tensor = tensors.pop(f"{UP}.{leaf}")
        if isinstance(how, torch.dtype):
            tensors[f"{UP}.{leaf}"] = tensor.float().to(how) if how.is_floating_point else tensor.to(how)
        elif isinstance(how, slice):
            tensors[f"{UP}.{leaf}"] = tensor[how].clone()
        elif how is not None:
            tensors[f"{UP}.{leaf}"] = torch.full_like(tensor, how)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(LoadError, match=re.escape(message)) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
