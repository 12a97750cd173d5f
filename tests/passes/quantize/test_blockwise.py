"""Blocks of 4 and 8 bits: layout as ONNX Runtime reads it, grids, GPTQ."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

from adaptc.errors import PassError
from adaptc.ir.blocks import Bits, Blocks
from adaptc.ir.grid import rows_at_a_time
from adaptc.passes.quantize.blockwise import concatenate, curvature_of, dequantize, quantize_blocks, split

Floats = npt.NDArray[np.float32]


def weights(rows: int, columns: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def inputs(count: int, columns: int, seed: int = 1) -> Floats:
    """Correlated, of unequal size and not centred: as activations are."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((columns, columns)) * np.exp(rng.standard_normal(columns))
    return (rng.standard_normal((count, columns)) @ mixing + 0.5).astype(np.float32)


def matmul_nbits(blocks: Blocks, x: Floats, accuracy: int = 0) -> Floats:
    """Run a model of one MatMulNBits node."""
    names = ["packed", "scales", "zeros"]
    arrays: list[npt.NDArray[Any]] = [blocks.packed, blocks.scales.reshape(-1)]
    if blocks.zero_points is not None:
        arrays.append(blocks.zero_points.reshape(-1))
    node = helper.make_node(
        "MatMulNBits",
        ["x", *names[: len(arrays)]],
        ["y"],
        domain="com.microsoft",
        K=blocks.columns,
        N=blocks.rows,
        bits=blocks.bits,
        block_size=blocks.block_size,
        accuracy_level=accuracy,
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(x), blocks.rows])],
        [numpy_helper.from_array(array, name) for name, array in zip(names, arrays, strict=False)],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Floats = session.run(None, {"x": x})[0]
    return result


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [32, 96, 128, 50])
def test_onnx_runtime_reads_what_dequantize_says(bits: Bits, symmetric: bool, columns: int) -> None:
    blocks = quantize_blocks(weights(24, columns) + 0.3, bits, symmetric=symmetric)
    x = inputs(3, columns)
    expected = x @ dequantize(blocks).T
    np.testing.assert_allclose(matmul_nbits(blocks, x), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("bits", [4, 8])
def test_fast_kernels_agree_up_to_their_rounding_of_inputs(bits: Bits) -> None:
    blocks = quantize_blocks(weights(64, 128), bits, symmetric=False)
    x = inputs(2, 128)
    expected = x @ dequantize(blocks).T
    np.testing.assert_allclose(matmul_nbits(blocks, x, accuracy=4), expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (8, False)])
def test_layout_is_that_of_onnx_runtimes_quantizer(bits: Bits, symmetric: bool) -> None:
    weight = weights(6, 96)
    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=symmetric, accuracy_level=4, bits=bits)
    packed, scales, zeros = DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(weight.T))
    ours = quantize_blocks(weight, bits, symmetric=symmetric)
    assert ours.packed.shape == packed.shape
    assert ours.scales.size == scales.size
    theirs = Blocks(packed, scales.reshape(6, 3), None if symmetric else zeros.reshape(6, -1), 96, bits, 32)
    if not symmetric:
        assert ours.zero_points is not None
        assert ours.zero_points.size == zeros.size
    error = np.abs(dequantize(theirs) - weight).mean()
    assert error < 0.3 * 2.0 ** (4 - bits)  # read wrongly, it would be about 1
    assert np.square(dequantize(ours) - weight).sum() <= np.square(dequantize(theirs) - weight).sum() * 1.02


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 130),
    bits=st.sampled_from([4, 8]),
    block=st.sampled_from([16, 32, 64]),
    symmetric=st.booleans(),
    calibrated=st.booleans(),
    size=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e12]),
)
def test_any_shape_and_size(
    rows: int, columns: int, bits: Bits, block: int, symmetric: bool, calibrated: bool, size: float
) -> None:
    weight = weights(rows, columns, rows * 131 + columns) * np.float32(size)
    x = inputs(2 * columns, columns)
    hessian = x.T @ x if calibrated else None
    blocks = quantize_blocks(weight, bits, block, symmetric=symmetric, hessian=hessian)
    count = -(-columns // block)
    assert blocks.packed.shape == (rows, count, block * bits // 8)
    assert blocks.scales.shape == (rows, count)
    assert (blocks.zero_points is None) == symmetric
    if blocks.zero_points is not None:
        assert blocks.zero_points.shape == (rows, -(-count * bits // 8))
    back = dequantize(blocks)
    assert back.shape == weight.shape
    assert np.isfinite(back).all()
    if not calibrated:
        assert np.abs(back - weight).max() <= 0.26 * np.abs(weight).max() + 1e-19


@pytest.mark.parametrize("calibrated", [False, True])
def test_weights_on_an_asymmetric_grid_come_back_exactly(calibrated: bool) -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 16, (8, 4, 32))
    codes[..., 0], codes[..., 1] = 0, 15
    scales, zeros = rng.uniform(0.01, 0.1, (8, 4, 1)), rng.integers(0, 16, (8, 4, 1))
    weight = ((codes - zeros) * scales).reshape(8, 128).astype(np.float32)
    x = inputs(400, 128)
    blocks = quantize_blocks(weight, 4, hessian=x.T @ x if calibrated else None)
    np.testing.assert_allclose(dequantize(blocks), weight, atol=1e-6)


@pytest.mark.parametrize(
    ("bits", "low", "high"),
    [(4, -8, 7), (8, -128, 127), (8, -127, 127)],
    ids=["Q4_0", "int8", "Q8_0"],
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_that_were_symmetric_come_back_exactly(bits: Bits, low: int, high: int, symmetric: bool) -> None:
    rng = np.random.default_rng(4)
    codes = rng.integers(low, high, (8, 2, 32))
    codes[..., 5] = low
    weight = (codes * rng.choice([-1, 1], (8, 2, 1)) * 0.0123).reshape(8, 64).astype(np.float32)
    blocks = quantize_blocks(weight, bits, symmetric=symmetric)
    np.testing.assert_allclose(dequantize(blocks), weight, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_halves_the_error_of_outputs(symmetric: bool) -> None:
    weight, x = weights(48, 160), inputs(1000, 160)
    plain = quantize_blocks(weight, 4, symmetric=symmetric)
    rounded = quantize_blocks(weight, 4, symmetric=symmetric, hessian=x.T @ x / len(x))

    def error(blocks: Blocks) -> float:
        return float(np.square(x @ (dequantize(blocks) - weight).T).sum())

    assert error(rounded) < 0.5 * error(plain)


def test_rows_are_independent_so_parts_equal_the_whole() -> None:
    weight, x = weights(12, 64), inputs(200, 64)
    curve = curvature_of(x.T @ x)
    whole = quantize_blocks(weight, 4, hessian=curve)
    parts = [quantize_blocks(part, 4, hessian=curve) for part in (weight[:5], weight[5:])]
    joined = concatenate(parts)
    np.testing.assert_array_equal(joined.packed, whole.packed)
    # Not to the last bit: BLAS sums in another order when there are fewer rows.
    np.testing.assert_allclose(dequantize(joined), dequantize(whole), rtol=1e-5)
    for part, again in zip(parts, split(joined, [5, 7]), strict=True):
        np.testing.assert_array_equal(again.packed, part.packed)
        np.testing.assert_array_equal(dequantize(again), dequantize(part))


def test_parts_that_differ_are_not_stacked() -> None:
    one, other = quantize_blocks(weights(2, 64), 4), quantize_blocks(weights(2, 64), 8)
    with pytest.raises(PassError, match="stacked"):
        concatenate([one, other])


def test_inputs_that_never_occur_do_no_harm() -> None:
    weight, x = weights(8, 64), inputs(200, 64)
    x[:, 10:40] = 0
    blocks = quantize_blocks(weight, 4, hessian=x.T @ x)
    assert np.abs(dequantize(blocks) - weight).max() < 1
    silent = quantize_blocks(weight, 4, hessian=np.zeros((64, 64), np.float32))
    assert np.abs(dequantize(silent) - weight).max() < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 24}, "block size 24"),
        ({"hessian": np.zeros((3, 4), np.float32)}, "square"),
        ({"hessian": np.eye(65, dtype=np.float32)}, "columns"),
        ({"hessian": np.full((64, 64), np.nan, np.float32)}, "Hessian"),
    ],
)
def test_misfits_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PassError, match=message):
        quantize_blocks(weights(2, 64), 4, **options)


def test_not_a_number_is_refused() -> None:
    weight = weights(2, 64)
    weight[1, 3] = np.nan
    with pytest.raises(PassError, match="NaN"):
        quantize_blocks(weight, 4)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "columns"), [(4, 96), (4, 80), (8, 64)])
def test_rows_that_are_read_in_parts_get_the_same_codes(bits: Bits, columns: int, symmetric: bool) -> None:
    class Parts:
        """Rows of a matrix that are read as they are asked for."""

        def __init__(self, whole: npt.NDArray[np.float32]) -> None:
            self.whole, self.shape, self.most = whole, whole.shape, 0

        def __getitem__(self, rows: slice) -> npt.NDArray[np.float32]:
            part = self.whole[rows]
            self.most = max(self.most, len(part))
            return part

    rows = 12 * rows_at_a_time(columns) + 5
    parts = Parts(np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32))
    found = quantize_blocks(parts, bits, symmetric=symmetric)
    assert parts.most < rows / 2
    some = np.sort(np.random.default_rng(1).integers(0, rows, 500))
    expected = quantize_blocks(parts.whole[some], bits, symmetric=symmetric)
    assert np.array_equal(found.packed[some], expected.packed)
    assert np.array_equal(found.scales[some], expected.scales)
    if expected.zero_points is not None:
        assert found.zero_points is not None
        assert np.array_equal(found.zero_points[some], expected.zero_points)
