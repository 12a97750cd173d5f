"""What ONNX Runtime's product with quantized weights takes by rows of a step, and whether results depend on them.

python -m tests.bench.measure_kernels --columns 1536 --rows 17920
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)
FORMS = (
    # bits, block size, zero points, accuracy level (4 rounds activations to 8 bits, 0 leaves them)
    *((4, 32, True, 4), (4, 32, False, 4), (4, 64, False, 4), (4, 128, False, 4), (4, 16, False, 4)),
    *((4, 32, True, 0), (8, 32, False, 4), (8, 16, False, 4)),
)
TURNS = 25


def product(
    columns: int, rows: int, bits: int, block: int, zeros: bool, accuracy: int, threads: int | None
) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    """A session that multiplies by random weights: float32 [tokens, 1, columns] -> float32 [tokens, 1, rows]."""
    random, blocks = np.random.default_rng(0), -(-columns // block)
    weights = [
        numpy_helper.from_array(random.integers(0, 256, (rows, blocks, block * bits // 8), np.uint8), "codes"),
        numpy_helper.from_array(random.random((rows, blocks), np.float32) / 100, "scales"),
    ]
    if zeros:
        weights.append(numpy_helper.from_array(random.integers(0, 256, (rows, -(-blocks * bits // 8)), np.uint8), "z"))
    node = helper.make_node(
        "MatMulNBits",
        ["x", *(each.name for each in weights)],
        ["y"],
        domain="com.microsoft",
        K=columns,
        N=rows,
        bits=bits,
        block_size=block,
        accuracy_level=accuracy,
    )
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["t", 1, s]) for n, s in (("x", columns), ("y", rows))]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = ort.SessionOptions()
    if threads:
        options.intra_op_num_threads = threads
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session: Any = ort.InferenceSession(model.SerializeToString(), options)
    return lambda x: session.run(None, {"x": x})[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--columns", type=int, default=1536)
    parser.add_argument("--rows", type=int, default=17920)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    print(
        f"onnxruntime {ort.__version__}; [{given.rows}, {given.columns}]; µs of one token, then times that; ! not equal"
    )
    for form in FORMS:
        multiply = product(given.columns, given.rows, *form, given.threads)
        tokens = np.random.default_rng(1).normal(size=(STEPS[-1], 1, given.columns)).astype(np.float32)
        alone = np.concatenate([multiply(tokens[place : place + 1]) for place in range(STEPS[-1])])
        times: dict[int, list[float]] = {steps: [] for steps in STEPS}
        for _ in range(TURNS):
            for steps in STEPS:
                began = perf_counter()
                multiply(tokens[:steps])
                times[steps].append(perf_counter() - began)
        one = median(times[1])
        cells = []
        for steps in STEPS[1:]:
            equal = np.array_equal(multiply(tokens[:steps]), alone[:steps])
            cells.append(f"{median(times[steps]) / one:.2f}{'' if equal else '!'}")
        bits, block, zeros, accuracy = form
        label = f"int{bits} block {block:3}{' zeros' if zeros else '      '} accuracy {accuracy}"
        print(f"{label}  {one * 1e6:7.0f}  " + "  ".join(f"{n}: {c}" for n, c in zip(STEPS[1:], cells, strict=True)))


if __name__ == "__main__":
    main()
