"""The products of a step against NumPy, with a warp's own code, and the compiler's word that they are CUDA C."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from adaptc.runtime.backends.cuda.driver.nvrtc import cubin
from adaptc.runtime.backends.cuda.kernels.packed_gemm import (
    FEW,
    ROWS,
    PackedLayout,
    enqueue_gemm,
    gemm_source,
    splits_of,
)
from adaptc.runtime.errors import BundleError, EngineError
from tests.fakes.cuda import FakeCuda
from tests.fakes.warp_cuda import WarpCuda
from tests.models.packed import Bits, Drawn, draw

ACTIVATIONS: dict[str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * np.vectorize(NormalDist().cdf)(x),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}
OTHERWISE, ZEROS, JUST_DECIDED = 1, 2, 4


def multiply(
    cuda: FakeCuda,
    drawn: Drawn,
    x: npt.NDArray[np.float16],
    y: npt.NDArray[Any],
    wants: npt.NDArray[np.uint8] | None = None,
    skip: int = 0,
    small: int = 0,
) -> None:
    """y = x·Wᵀ + b as a step has it; `y` may have more columns than there are results."""
    layout, rows, stream = PackedLayout.of(drawn.weight), len(x), cuda.stream()
    packed = drawn.packed(cuda).packed(drawn.step, drawn.weight)
    splits = splits_of(layout, rows, cuda.device.multiprocessors)
    parts, arrived = np.full(splits * rows * layout.results, np.nan, np.float32), np.zeros(layout.tiles, np.int32)
    bias = 0 if drawn.bias is None else drawn.bias.ctypes.data
    addresses = packed.records, bias, x.ctypes.data, y.ctypes.data
    asked = (0 if wants is None else wants.ctypes.data), skip
    scratch = parts.ctypes.data, arrived.ctypes.data
    enqueue_gemm(
        cuda, layout, rows, addresses, packed.factor, y.shape[1], drawn.weight.pair, asked, scratch, stream, small
    )
    assert not arrived.any(), "the next product finds zeros"


def rows_of(count: int, columns: int) -> npt.NDArray[np.float16]:
    return np.random.default_rng(count + columns).standard_normal((count, columns)).astype(np.float16)


def expected(drawn: Drawn, x: npt.NDArray[np.float16]) -> npt.NDArray[np.float64]:
    product: npt.NDArray[np.float64] = x.astype(np.float64) @ drawn.values.T
    return product if drawn.bias is None else product + drawn.bias


def assert_product(y: npt.NDArray[np.float32], drawn: Drawn, x: npt.NDArray[np.float16]) -> None:
    """Weights are rounded to half precision: an error of 2^-11 of each, of which sums even out most."""
    right = expected(drawn, x)
    bound = np.abs(x.astype(np.float64)) @ np.abs(drawn.values).T * 2.0**-10 + 1e-6
    assert (np.abs(y - right) <= bound).all()
    assert np.linalg.norm(y - right) <= 5e-4 * np.linalg.norm(right)


@pytest.mark.parametrize(("sm", "bits", "columns"), [(80, 4, 72), (90, 8, 512), (120, 16, 72)])
def test_nvrtc_compiles_them(sm: int, bits: int, columns: int) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    assert cubin(gemm_source(PackedLayout(bits, 1, 64, columns)), sm).startswith(b"\x7fELF")


WARPS: list[tuple[Bits, int, int, int, int, bool]] = [
    (4, 1, 40, 256, 32, True),
    (4, 3, 16, 8, 16, False),
    (4, 8, 33, 1160, 32, True),
    (4, 9, 17, 264, 32, True),
    (4, 16, 32, 256, 16, True),
    (4, 20, 40, 136, 64, False),
    (4, 64, 16, 384, 128, True),
    (8, 2, 33, 200, 16, True),
    (8, 8, 16, 64, 32, False),
    (8, 33, 40, 136, 16, True),
    (16, 1, 33, 72, 0, False),
    (16, 7, 16, 256, 0, False),
    (16, 33, 24, 104, 0, False),
]
"""Bits, rows, results, columns, block, and whether there are zero points: whole and ragged chunks, all row sizes."""


@pytest.mark.parametrize(("bits", "rows", "results", "columns", "block", "zeros"), WARPS)
def test_warps_give_the_product(
    tmp_path: Path, bits: Bits, rows: int, results: int, columns: int, block: int, zeros: bool
) -> None:
    drawn, x = draw(tmp_path, bits, results, columns, block, zeros=zeros, bias=True), rows_of(rows, columns)
    y = np.full((rows, results), np.nan, np.float32)
    multiply(WarpCuda(), drawn, x, y)
    assert_product(y, drawn, x)


@pytest.mark.parametrize("rows", [5, 12])
def test_blocks_that_share_tiles_and_columns_give_the_product(tmp_path: Path, rows: int) -> None:
    """One multiprocessor: a block goes over several tiles. Many: several blocks share the columns of one."""
    drawn, x = draw(tmp_path, 4, 150, 1040, 32, zeros=True), rows_of(rows, 1040)
    for units in (1, 12):
        cuda = WarpCuda(replace(FakeCuda().device, multiprocessors=units))
        assert splits_of(PackedLayout.of(drawn.weight), rows, units) == (9 if rows > FEW and units > 1 else 1)
        y = np.full((rows, 150), np.nan, np.float32)
        multiply(cuda, drawn, x, y)
        assert_product(y, drawn, x)


@pytest.mark.parametrize("kind", [WarpCuda, FakeCuda])
@pytest.mark.parametrize("rows", [3, 10])
def test_rows_that_do_not_want_it_are_left_alone_or_get_zeros(tmp_path: Path, kind: type[FakeCuda], rows: int) -> None:
    drawn, x = draw(tmp_path, 4, 24, 128, bias=True), rows_of(rows, 128)
    wants = (np.arange(rows) % 3 == 0).astype(np.uint8)
    for skip in (0, OTHERWISE, ZEROS, OTHERWISE | ZEROS, ZEROS | JUST_DECIDED):
        runs = (wants == 0) if skip & OTHERWISE else (wants != 0)
        y = np.full((rows, 24), 7, np.float32)
        multiply(kind(), drawn, x, y, wants, skip)
        right = expected(drawn, x)
        np.testing.assert_allclose(y[runs], right[runs], rtol=2e-3, atol=2e-3)
        assert (y[~runs] == (0 if skip & ZEROS else 7)).all()


@pytest.mark.parametrize("skip", [0, ZEROS])
@pytest.mark.parametrize("rows", [3, 10])
def test_a_product_that_no_row_wants_reads_no_weight(rows: int, skip: int) -> None:
    cuda, layout = WarpCuda(), PackedLayout(4, 1, 24, 128)
    wants, y, arrived = np.zeros(rows, np.uint8), np.full((rows, 24), 7, np.float32), np.zeros(2, np.int32)
    parts = np.zeros(16 * y.size, np.float32)
    scratch = parts.ctypes.data, arrived.ctypes.data
    addresses, asked = (0, 0, 0, y.ctypes.data), (wants.ctypes.data, skip)
    enqueue_gemm(cuda, layout, rows, addresses, 1.0, 24, "", asked, scratch, cuda.stream(), small=0)
    assert (y == (0 if skip else 7)).all()
    assert not arrived.any()


@pytest.mark.parametrize("pair", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize(("bits", "rows"), [(4, 1), (4, 10), (8, 3), (16, 40)])
def test_halves_that_are_joined(tmp_path: Path, bits: Any, rows: int, pair: Any) -> None:
    drawn, x = draw(tmp_path, bits, 48, 256, 32), rows_of(rows, 256)
    drawn = replace(drawn, weight=replace(drawn.weight, pair=pair))
    first, second = np.split(expected(drawn, x), 2, axis=1)
    activated = ACTIVATIONS[pair](first.astype(np.float64))
    for cuda in (WarpCuda(), FakeCuda()):
        y = np.full((rows, 24), np.nan, np.float16)
        multiply(cuda, drawn, x, y)
        np.testing.assert_allclose(y, activated * second, rtol=4e-3, atol=2e-3)


@pytest.mark.parametrize("rows", [9, 16, 23])
def test_small_weights_are_read_for_every_eight_rows(tmp_path: Path, rows: int) -> None:
    drawn, x = draw(tmp_path, 4, 40, 192, 32), rows_of(rows, 192)
    wants = (np.arange(rows) % 3 > 0).astype(np.uint8)
    for cuda in (WarpCuda(), FakeCuda()):
        y = np.full((rows, 40), 7, np.float32)
        multiply(cuda, drawn, x, y, wants, ZEROS, small=1 << 20)
        assert_product(y[wants > 0], drawn, x[wants > 0])
        assert not y[wants == 0].any()


@pytest.mark.parametrize("rows", [2, 10])
def test_results_lie_between_those_of_others(tmp_path: Path, rows: int) -> None:
    drawn, x = draw(tmp_path, 8, 24, 64, 16), rows_of(rows, 64)
    y = np.full((rows, 40), 7, np.float32)
    for cuda in (WarpCuda(), FakeCuda()):
        multiply(cuda, drawn, x, y)
        assert_product(y[:, :24], drawn, x)
        assert (y[:, 24:] == 7).all()


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
@pytest.mark.parametrize("rows", [1, ROWS])
def test_the_stand_in_gives_the_same(tmp_path: Path, bits: Bits, rows: int) -> None:
    drawn, x = draw(tmp_path, bits, 33, 136, 32, zeros=True), rows_of(rows, 136)
    y = np.full((rows, 33), np.nan, np.float32)
    multiply(FakeCuda(), drawn, x, y)
    assert_product(y, drawn, x)


def test_a_weight_of_zeros_is_zeros(tmp_path: Path) -> None:
    drawn = draw(tmp_path, 8, 16, 64, 16)
    record = drawn.step.weights["scales"]
    content = bytearray((tmp_path / "data").read_bytes())
    content[record.offset : record.offset + record.bytes] = bytes(record.bytes)
    (tmp_path / "data").write_bytes(content)
    y = np.full((2, 16), np.nan, np.float32)
    multiply(WarpCuda(), drawn, rows_of(2, 64), y)
    assert not y.any()


def test_a_weight_that_half_precision_cannot_hold_is_refused(tmp_path: Path) -> None:
    drawn = draw(tmp_path, 32, 8, 16)
    content = bytearray((tmp_path / "data").read_bytes())
    content[:4] = np.float32(7e4).tobytes()
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(EngineError, match=r"^codes: half precision cannot hold it; weights: int8 or int4 is right$"):
        drawn.packed(FakeCuda()).packed(drawn.step, drawn.weight)


def test_weights_that_lie_beyond_their_file_are_refused(tmp_path: Path) -> None:
    drawn = draw(tmp_path, 4, 16, 64)
    (tmp_path / "data").write_bytes((tmp_path / "data").read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"data: too short; compile again$"):
        drawn.packed(FakeCuda()).packed(drawn.step, drawn.weight)
    with pytest.raises(BundleError, match=r"^steps: nothing says where 'other' lies; compile again$"):
        drawn.packed(FakeCuda()).packed(drawn.step, replace(drawn.weight, codes="other"))


def test_a_weight_is_packed_once_and_what_packing_took_is_given_back(tmp_path: Path) -> None:
    cuda, drawn = FakeCuda(), draw(tmp_path, 4, 40, 256, zeros=True)
    weights = drawn.packed(cuda)
    first = weights.packed(drawn.step, drawn.weight)
    assert weights.packed(drawn.step, drawn.weight) is first
    assert weights.bytes == PackedLayout.of(drawn.weight).bytes
    weights.done()
    assert {len(memory) for memory in cuda.live.values()} == {weights.bytes}
