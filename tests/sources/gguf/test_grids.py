"""Codes of a GGUF file's tensors stand for the numbers that gguf reads from it, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from adaptc.sources.find import find_source
from adaptc.spec.schema import ModelSpec
from tests.models.gguf_file import F32, tiny_model, write
from tests.sources.gguf.test_numbers import COUNT, TOKENS
from tests.sources.gguf.test_types import SCALES, random_blocks

GRIDS = {
    "Q4_0": (16, 32, False),
    "Q4_1": (16, 32, True),
    "Q5_0": (32, 32, False),
    "Q5_1": (32, 32, True),
    "Q8_0": (256, 32, False),
    "Q2_K": (4, 16, True),
    "Q3_K": (8, 16, False),
    "Q4_K": (16, 32, True),
    "Q5_K": (32, 32, True),
    "Q6_K": (64, 16, False),
    "IQ4_NL": (256, 32, False),
    "IQ4_XS": (256, 32, False),
    "TQ1_0": (4, 256, False),
    "TQ2_0": (4, 256, False),
    "MXFP4": (256, 32, False),
}
"""Of ggml types: codes, columns in a group, and whether groups have a minimum."""


def source(path: Path) -> Any:
    return find_source(ModelSpec(source=str(path)), path.parent)


@pytest.mark.parametrize("name", SCALES)
def test_a_table_of_each_type(name: str, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType[name]
    model = tiny_model("llama", COUNT, hidden_size=256, intermediate_size=32, num_hidden_layers=1)
    table = random_blocks(kind, COUNT, 256)

    def add(writer: Any) -> None:
        writer.add_tensor("token_embd.weight", table, raw_shape=table.shape, raw_dtype=kind)

    path = write(tmp_path / "m.gguf", model, "llama", TOKENS, kind=F32, without={"token_embd.weight"}, more=add)
    found = source(path)
    grid = found.matrices()["model.embed_tokens.weight"].read()
    assert (grid is not None) == (name in GRIDS)
    if grid is not None:
        assert (grid.levels, grid.group, grid.offsets is not None) == GRIDS[name]
        assert grid.codes.max() < grid.levels
        assert np.array_equal(grid.dense(), gguf.dequantize(table, kind))
    assert found.matrices()["model.layers.0.mlp.up_proj.weight"].read() is None


@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "Q4_0"), ("llama", "Q4_1"), ("qwen2", "Q8_0"), ("gemma2", "Q8_0")]
)
def test_rows_are_in_the_order_of_transformers(family: str, kind: str, tmp_path: Path) -> None:
    """llama.cpp's converter reorders rows of Llama's queries and keys."""
    extra = {"query_pre_attn_scalar": 16} if family == "gemma2" else {}
    model = tiny_model(family, COUNT, **extra)
    path = write(tmp_path / "m.gguf", model, family, TOKENS, kind=gguf.GGMLQuantizationType[kind])
    found = source(path)
    assert found.quantization() == kind
    tensors, matrices = found.tensors(), found.matrices()
    assert matrices.keys() == {name for name, tensor in tensors.items() if tensor.ndim == 2}
    for name, matrix in matrices.items():
        assert torch.equal(torch.from_numpy(matrix.read().dense()), tensors[name]), name
        assert matrix.rows == len(tensors[name])


def test_a_file_of_floats_is_not_quantized(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tiny_model("llama", COUNT), "llama", TOKENS, kind=gguf.GGMLQuantizationType.F16)
    assert source(path).quantization() is None
