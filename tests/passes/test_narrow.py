"""Weights that a narrower type cannot hold are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.errors import AdaptcError, LoadError, PassError
from adaptc.passes.narrow import narrowed
from adaptc.passes.quantize.blockwise import quantize_blocks
from adaptc.sources.find import find_source
from adaptc.spec.reading import read_spec
from adaptc.spec.schema import ModelSpec
from tests.models import folder


def weight(values: Any) -> ir.Value:
    array = np.array(values, np.float32)
    return ir.Value(name="mlp.weight", const_value=ir.tensor(array), shape=ir.Shape(array.shape))


def test_what_fits_is_rounded() -> None:
    values = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        assert (narrowed(weight(values), dtype, "x") == values.astype(dtype)).all()
    # Small numbers among large ones are lost in silence: they hardly count. So are zeros.
    assert narrowed(weight([1.0, 1e-9, 0.0]), np.float16, "x").tolist() == [1, 0, 0]
    assert narrowed(weight([0.0, 0.0]), np.float16, "x").tolist() == [0, 0]


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(PassError) as refused:
        narrowed(weight([1.0, -1e5]), np.float16, "weights: fp32")
    assert str(refused.value) == ("mlp.weight: 1e+05 is beyond float16, which ends at 6.55e+04; weights: fp32 is right")
    assert narrowed(weight([1.0, -1e5]), ml_dtypes.bfloat16, "x").dtype == ml_dtypes.bfloat16
    with pytest.raises(
        PassError, match=r"^mlp\.weight: numbers of 1\.0e-08 and less; float16 rounds 100% of them away"
    ):
        narrowed(weight([1e-8, 1e-9]), np.float16, "weights: fp32")


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_of_very_large_numbers_are_refused(bits: Any) -> None:
    blocks = quantize_blocks(np.full((2, 32), 1e14, np.float32), bits)
    assert np.isfinite(blocks.scales).all()
    with pytest.raises(PassError, match="a weight of 1e\\+20: the error of its block is no float"):
        quantize_blocks(np.full((2, 32), 1e20, np.float32), bits)


def test_a_compile_names_the_weight_and_writes_nothing(tmp_path: Path) -> None:
    spec, model = folder.write(tmp_path)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = 1e5
    model.save_pretrained(tmp_path / "model")
    for settings in (["target.weights=fp16"], ["models.lm.dtype=float16"]):
        with pytest.raises(AdaptcError) as refused:
            compile_spec(read_spec(spec, settings), tmp_path, tmp_path / "bundle", Cache(tmp_path / "cache"))
        assert "model.layers.1.mlp.down_proj.weight" in str(refused.value)
        assert "float16" in str(refused.value)
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "bundle").exists()
    tensors = find_source(ModelSpec(source="model", dtype="float16"), tmp_path).tensors()
    with pytest.raises(LoadError, match=r"float16 ends at 6\.55e\+04: dtype: bfloat16 or float32 is right"):
        tensors["model.layers.1.mlp.down_proj.weight"]
