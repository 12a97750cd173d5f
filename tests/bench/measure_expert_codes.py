"""What rounding a block's experts by GPTQ takes, and what it is worth beside the nearest codes.

usage: python -m tests.bench.measure_expert_codes [--experts 64] [--rows 8192]

The geometry is OLMoE's: width 2048, 64 experts of 1024 inner neurons, 8 of them for a row. Weights are random; rows are
of a random covariance whose eigenvalues fall as 1 / n, and a random router sends them to experts. Errors are those of
the block's result, squared, as a part of it, on the rows that chose the codes and on as many others.
"""

from __future__ import annotations

import argparse
import resource
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import torch
from torch import Tensor

from adaptc.ir.operators import experts as operator  # noqa: F401  (declares adaptc::experts)
from adaptc.passes.quantize.blockwise import dequantized, quantize_blocks
from adaptc.passes.quantize.expert_codes import RoutedRows, quantize_expert
from adaptc.passes.quantize.kept_codes import Form

WIDTH, INNER, USED, BLOCK = 2048, 1024, 8, 32
FORMS = Form(4, BLOCK, symmetric=False), Form(4, BLOCK, symmetric=True)

Pair = tuple[Tensor, Tensor]


def routed(states: Tensor, router: Tensor) -> RoutedRows:
    """Rows and what a softmax over all experts sends them to."""
    shares, chosen = (states @ router.T).softmax(-1).topk(USED)
    return RoutedRows(states, chosen, shares)


def result(rows: RoutedRows, pairs: list[Pair]) -> Tensor:
    """What the block makes of rows."""
    matrices = (torch.stack(each) for each in zip(*pairs, strict=True))
    found: Tensor = torch.ops.adaptc.experts(rows.states, rows.chosen, rows.shares, *matrices)
    return found


def nearest(pair: Pair) -> Pair:
    """A pair rounded to the nearest codes."""
    first, second = (
        dequantized(quantize_blocks(matrix.numpy(), 4, BLOCK, symmetric=form.symmetric))
        for matrix, form in zip(pair, FORMS, strict=True)
    )
    return first, second


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--rows", type=int, default=8192)
    asked = parser.parse_args()
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0] / torch.arange(1, WIDTH + 1).sqrt()
    router = torch.randn(asked.experts, WIDTH)
    scaled = torch.nn.functional.rms_norm
    rows, others = (routed(scaled(torch.randn(asked.rows, WIDTH) @ basis.T, (WIDTH,)), router) for _ in range(2))
    pairs: list[Pair] = [
        (torch.randn(2 * INNER, WIDTH) * WIDTH**-0.5, torch.randn(WIDTH, INNER) * INNER**-0.5)
        for _ in range(asked.experts)
    ]
    counts = torch.bincount(rows.chosen.reshape(-1), minlength=asked.experts)
    print(f"rows of an expert: {int(counts.min())} to {int(counts.max())}")
    exact = [result(each, pairs) for each in (rows, others)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def rounded(expert: int) -> Pair:
        first, second = quantize_expert(rows, expert, pairs[expert], FORMS)
        return dequantized(first), dequantized(second)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, work, given in (("gptq", rounded, range(asked.experts)), ("nearest", nearest, pairs)):
        began = perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            changed = list(pool.map(work, given))
        took = perf_counter() - began
        errors = [
            float((result(each, changed) - right).square().sum() / right.square().sum())
            for each, right in zip((rows, others), exact, strict=True)
        ]
        print(f"{name}: {took:.1f} s with {threads} threads; error {errors[0]:.5f}, others {errors[1]:.5f}")
    print(f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10} MiB beside weights and rows")


if __name__ == "__main__":
    main()
