"""Tensors of every ggml type are what llama.cpp makes of them.

The embedding is of the type, and all else of float32: llama.cpp takes rows out of a table by spelling them out in
float32, where its products with quantized weights would round the activations too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.models.gguf_file import F32, tiny_model, write
from tests.models.llama_cpp import LlamaCpp, needs_llama_cpp
from tests.sources.gguf.test_numbers import COUNT, TOKENS, largest_difference, limit

# Where a block has its scales, float16 numbers; random bytes there would be of any size.
SCALES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_XXS", "IQ2_XS"), (0,)),
    **dict.fromkeys(("IQ2_S", "IQ1_S"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
    **dict.fromkeys(("F16", "BF16", "IQ1_M", "MXFP4", "NVFP4"), ()),
}


def random_blocks(kind: Any, rows: int, width: int) -> Any:
    """Bytes of a table of this type, uint8 [rows, bytes], whose values are neither huge nor all near zero."""
    draw = np.random.default_rng(0)
    size, count = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.zeros((rows * width // size, count), np.uint8)
    wrong = np.arange(len(blocks))
    while len(wrong):
        blocks[wrong] = draw.integers(0, 256, (len(wrong), count), np.uint8)
        for at in SCALES[kind.name]:
            blocks[wrong, at : at + 2] = np.full((len(wrong), 1), 0.05, np.float16).view(np.uint8)
        with np.errstate(all="ignore"):
            largest = np.abs(gguf.dequantize(blocks[wrong], kind).reshape(len(wrong), -1)).max(axis=1)
        wrong = wrong[~((largest < 1e3) & (largest > 1e-3))]
    return blocks.reshape(rows, -1)


@needs_llama_cpp
@pytest.mark.parametrize("name", SCALES)
def test_a_table_of_each_type_is_read_as_llama_cpp_reads_it(name: str, tmp_path: Path, llama_cpp: LlamaCpp) -> None:
    kind = gguf.GGMLQuantizationType[name]
    model = tiny_model("llama", COUNT, hidden_size=256, intermediate_size=32, num_hidden_layers=1)

    def add(writer: Any) -> None:
        table = random_blocks(kind, COUNT, 256)
        writer.add_tensor("token_embd.weight", table, raw_shape=table.shape, raw_dtype=kind)

    path = write(tmp_path / "m.gguf", model, "llama", TOKENS, kind=F32, without={"token_embd.weight"}, more=add)
    assert largest_difference(path, llama_cpp) < limit("llama")
