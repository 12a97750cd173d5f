"""Weights in half precision, converted when they are read."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from adaptc.passes.match import initializer
from adaptc.passes.narrow import narrowed

HALVES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_NUMPY = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def halved(graph: ir.Graph, weight: ir.Value, half: str) -> ir.Value:
    """The weight in half precision; one for all that use it."""
    name = f"{weight.name}.{half}"
    if name in graph.initializers:
        return graph.initializers[name]
    instead = "weights: bf16" if half == "fp16" else "backend: onnxruntime"

    def narrow() -> ir.TensorProtocol:
        return ir.tensor(narrowed(weight, _NUMPY[half], instead), name=name)

    lazy = ir.LazyTensor(narrow, dtype=HALVES[half], shape=weight.shape or ir.Shape([]), name=name)
    return initializer(graph, lazy)
