"""Rounding by a Hessian gives what the papers' own form of it gives, on the grids that were chosen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from adaptc.ir.blocks import Blocks, nearest_blocks
from adaptc.passes.quantize.blockwise import curvature_of, dequantize, quantize_blocks
from adaptc.passes.quantize.hqq import hqq_grid
from adaptc.passes.quantize.rounding import DAMPING

Floats = npt.NDArray[np.float32]
ROWS, COLUMNS, SIZE = 40, 320, 32  # more columns than a panel has


def weights(seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal((ROWS, COLUMNS)).astype(np.float32)


def hessian(seed: int = 2) -> Floats:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((900, COLUMNS)) @ rng.standard_normal((COLUMNS, COLUMNS))
    x = (mixed * np.exp(rng.standard_normal(COLUMNS))).astype(np.float32)
    second: Floats = x.T @ x / len(x)
    return second


def by_the_paper(weight: Floats, second: Floats, blocks: Blocks, order: npt.NDArray[np.int64]) -> Floats:
    """GPTQ as arXiv:2210.17323 has it: each column's error goes to those to come by the inverse's Cholesky factor."""
    work = weight[:, order].astype(np.float64)
    matrix = second[np.ix_(order, order)].astype(np.float64)
    matrix[np.diag_indices(COLUMNS)] += DAMPING * second.diagonal().mean()
    upper = np.linalg.cholesky(np.linalg.inv(matrix)).T
    zeros = np.full(blocks.scales.shape, 8.0)
    if blocks.zero_points is not None:
        both = np.stack([blocks.zero_points & 15, blocks.zero_points >> 4], -1).reshape(ROWS, -1)
        zeros = both[:, : blocks.scales.shape[1]].astype(np.float64)
    rounded = np.empty_like(work)
    for j, column in enumerate(order):
        scale, zero = blocks.scales[:, column // SIZE].astype(np.float64), zeros[:, column // SIZE]
        codes = np.clip(np.rint(work[:, j] / scale) + zero, 0, 15)
        rounded[:, j] = (codes - zero) * scale
        work[:, j:] -= np.outer((work[:, j] - rounded[:, j]) / upper[j, j], upper[j, j:])
    back: Floats = np.empty(weight.shape, np.float32)
    back[:, order] = rounded
    return back


@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_those_of_the_paper(symmetric: bool) -> None:
    weight, second = weights(), hessian()
    curve = curvature_of(second, SIZE)
    ours = quantize_blocks(weight, 4, SIZE, symmetric=symmetric, hessian=curve)
    theirs = by_the_paper(weight, second, ours, curve.order.flip(0).numpy())
    same = np.isclose(dequantize(ours), theirs, rtol=1e-4, atol=1e-6).all(axis=1)
    # Floats are summed in another order: a code on the edge may fall the other way, and the rest of its row with it.
    assert same.mean() >= 0.9


def test_important_columns_are_rounded_first_and_blocks_stay_whole() -> None:
    second = hessian()
    order = curvature_of(second, SIZE).order.flip(0).numpy()
    groups = order.reshape(-1, SIZE) // SIZE
    assert (groups == groups[:, :1]).all()
    weight = second.diagonal()
    assert (np.diff(weight[order].reshape(-1, SIZE), axis=1) <= 0).all()
    assert (np.diff(weight.reshape(-1, SIZE).sum(1)[groups[:, 0]]) <= 0).all()
    assert sorted(order) == list(range(COLUMNS))


def test_the_factor_is_that_of_the_hessian() -> None:
    second = hessian()
    curve = curvature_of(second, SIZE)
    order = curve.order.numpy()
    factor = np.tril(curve.lower.numpy()).astype(np.float64) * curve.diagonal.numpy()
    expected = second[np.ix_(order, order)].astype(np.float64)
    expected[np.diag_indices(COLUMNS)] += DAMPING * second.diagonal().mean()
    np.testing.assert_allclose(factor @ factor.T, expected, rtol=1e-3, atol=1e-4 * expected.max())


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
def test_no_size_of_block_loses_more_than_plain_rounding(block_size: int) -> None:
    weight, second = weights(), hessian()

    def loss(blocks: Blocks) -> float:
        error = dequantize(blocks) - weight
        return float(np.vdot(error @ second, error))

    plain = loss(quantize_blocks(weight, 4, block_size))
    assert loss(quantize_blocks(weight, 4, block_size, hessian=second)) < 0.6 * plain


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.gpu
def test_a_gpu_chooses_the_same_codes() -> None:
    weight, second = weights(), hessian()
    here = quantize_blocks(weight, 4, SIZE, hessian=second)
    there = quantize_blocks(weight, 4, SIZE, hessian=curvature_of(torch.from_numpy(second).cuda(), SIZE))
    assert (here.packed == there.packed).all(axis=(1, 2)).mean() >= 0.9


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_hqq_has_fewer_large_errors_than_the_nearest_codes(scale: float) -> None:
    weight = np.random.default_rng(5).standard_t(3, (64, 256)).astype(np.float32) * np.float32(scale)

    def size(blocks: Blocks) -> float:
        return float(np.power(np.abs(dequantize(blocks) - weight) / scale, 0.7).sum())

    assert size(nearest_blocks(weight, 4, search=hqq_grid)) < 0.999 * size(quantize_blocks(weight, 4))


def test_hqq_keeps_weights_that_lie_on_a_grid_and_takes_any_others() -> None:
    rng = np.random.default_rng(3)
    codes, scales = rng.integers(0, 16, (8, 4, 32)), rng.uniform(0.01, 0.1, (8, 4, 1))
    codes[..., 0], codes[..., 1] = 0, 15
    on_grid = ((codes - rng.integers(0, 16, (8, 4, 1))) * scales).reshape(8, 128).astype(np.float32)
    np.testing.assert_allclose(dequantize(nearest_blocks(on_grid, 4, search=hqq_grid)), on_grid, atol=1e-6)
    for odd in (np.zeros((3, 50)), np.ones((3, 50)), np.full((3, 50), -1e-30), np.eye(50) * 1e12):
        back = dequantize(nearest_blocks(odd.astype(np.float32), 4, search=hqq_grid))
        assert np.isfinite(back).all()
        assert np.abs(back - odd).max() <= 0.1 * np.abs(odd).max() + 1e-19
