"""The kernel for GEMMs of few rows against NumPy, and the compiler's word that it is CUDA C."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest

from adaptc.runtime.backends.cuda.driver.nvrtc import cubin
from adaptc.runtime.backends.cuda.kernels.skinny_gemm import ROWS, WARPS, WHOLE, SkinnyGemm, source_of
from adaptc.runtime.backends.tensorrt.sizes import wanted
from adaptc.runtime.bundle.manifest import TensorSpec
from adaptc.runtime.bundle.partitions import PartitionGraph
from tests.fakes import cpu_kernels
from tests.fakes.cuda import FakeCuda

POINTER, INT = ctypes.c_void_p, ctypes.c_int


def graph(results: int, columns: int, *, gemm: bool = True) -> PartitionGraph:
    x = TensorSpec("in0", "float16", ("batch", "tokens", columns))
    y = TensorSpec("out0", "float32", ("batch", "tokens", results))
    weight = TensorSpec("in1", "float16", (results, columns))
    return PartitionGraph("gemm.onnx", (x, weight), (y,), 2 * results * columns, gemm)


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float16)


@pytest.mark.parametrize(("sm", "half"), [(80, "float16"), (90, "bfloat16"), (120, "float16")])
def test_nvrtc_compiles_it(sm: int, half: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    assert cubin(source_of(half), sm).startswith(b"\x7fELF")


def test_the_type_of_weights_is_part_of_what_is_compiled() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    assert cubin(source_of("float16"), 90) != cubin(source_of("bfloat16"), 90)


@pytest.mark.parametrize(
    ("rows", "results", "columns"),
    [(1, 32, 256), (3, 40, 512), (11, 33, 256), (2, 40, 8), (1, 32, 48), (5, 33, 296), (3, 32, 2080)],
)
def test_warps_give_the_gemm(rows: int, results: int, columns: int) -> None:
    x, weight, y = drawn(rows, columns), drawn(results, columns), np.full((rows, results), np.nan, np.float32)
    args = [(weight.ctypes.data, POINTER), (x.ctypes.data, POINTER), (y.ctypes.data, POINTER)]
    sizes = [(results, INT), (columns, INT), (rows, INT), (0, POINTER), (0, INT)]
    grid = -(-results // 16), -(-rows // 8)
    name = "skinny_gemm_ragged" if columns % WHOLE else "skinny_gemm"
    cpu_kernels.run(source_of("float16"), name, grid, 32 * WARPS, [*args, *sizes], cpu_kernels.WARPS)
    np.testing.assert_allclose(y, x.astype(np.float32) @ weight.astype(np.float32).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("columns", "name"), [(64, "skinny_gemm"), (48, "skinny_gemm_ragged")])
def test_it_is_launched_over_the_addresses_of_a_call(columns: int, name: str) -> None:
    cuda = FakeCuda()
    kernel = SkinnyGemm(cuda, "float16")
    x, weight, y = drawn(9, columns), drawn(50, columns), np.zeros((9, 50), np.float32)
    given = [x.ctypes.data, weight.ctypes.data]
    kernel.enqueue(graph(50, columns), 9, given, [y.ctypes.data], cuda.stream())
    np.testing.assert_allclose(y, x.astype(np.float32) @ weight.astype(np.float32).T, rtol=1e-4, atol=1e-4)
    stream = cuda.stream()
    cuda.begin_capture(stream)
    kernel.enqueue(graph(50, columns), 9, given, [y.ctypes.data], stream)
    cuda.end_capture(stream)
    assert [done for done, _ in cuda.graphs[-1]] == [name]


@pytest.mark.parametrize("more", ["", cpu_kernels.WARPS])
def test_a_gemm_that_is_left_out_reads_nothing_and_gives_zeros_or_nothing(more: str) -> None:
    runs, y = np.zeros(1, np.uint8), np.ones((2, 20), np.float32)
    given = [(0, POINTER), (0, POINTER), (y.ctypes.data, POINTER), (20, INT), (64, INT), (2, INT)]
    for zeros, expected in ((0, 1), (1, 0)):
        args = [*given, (runs.ctypes.data, POINTER), (zeros, INT)]
        for name in ("skinny_gemm", "skinny_gemm_ragged"):
            cpu_kernels.run(source_of("float16"), name, (2, 1), 32, args, more)
            assert (y == expected).all()


def test_many_rows_other_graphs_and_older_gpus_are_left_to_engines() -> None:
    kernel = SkinnyGemm(FakeCuda(), "float16")
    assert kernel.serves(graph(64, 64), ROWS)
    assert not kernel.serves(graph(64, 64), ROWS + 1)
    assert not kernel.serves(graph(64, 64, gemm=False), 1)
    old = replace(FakeCuda().device, sm=75)
    assert not SkinnyGemm(FakeCuda(old), "float16").serves(graph(64, 64), 1)


def test_only_what_the_kernel_does_not_do_is_built() -> None:
    gemm = graph(64, 64)
    assert wanted(gemm, (1, 8), (256,), 1) == []
    assert [sizes["tokens"] for sizes in wanted(gemm, (1, 8), (256,), 64)] == [(1, 64, 64)]
    assert [sizes["batch"] for sizes in wanted(gemm, (1, 64), (256,), 1)] == [(64, 64, 64)]
    assert len(wanted(gemm, (1, 8), (256,), 64, (75, 86))) == 3
