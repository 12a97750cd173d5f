"""Weights in half precision, converted when they are read."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from adaptc.passes.match import initializer

HALVES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_NUMPY = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def halved(graph: ir.Graph, weight: ir.Value, half: str) -> ir.Value:
    """The weight in half precision; one for all that use it."""
    name = f"{weight.name}.{half}"
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = weight.const_value

    def narrow() -> ir.TensorProtocol:
        assert tensor is not None
        return ir.tensor(tensor.numpy().astype(_NUMPY[half]), name=name)

    lazy = ir.LazyTensor(narrow, dtype=HALVES[half], shape=weight.shape or ir.Shape([]), name=name)
    return initializer(graph, lazy)
