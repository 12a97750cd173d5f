"""Packed weights come back as NumPy reads them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adaptc.runtime.backends.cuda.kernel_steps.packed_weights import PackedWeights
from adaptc.runtime.backends.cuda.kernels.packed_gemm import PackedLayout
from adaptc.runtime.backends.cuda.kernels.unpack import enqueue_unpack
from adaptc.runtime.bundle.gpu_steps.device_step import GemmWeight, StepWeight
from tests.fakes.cuda import FakeCuda

CASES = [
    # bits, block, results, columns, zero points, size of a scale
    (4, 16, 40, 144, True, 1e-2),
    (4, 32, 16, 128, False, 1e-2),
    (4, 128, 24, 256, True, 1e-6),
    (8, 16, 33, 80, True, 1e-2),
    (8, 64, 16, 64, False, 1e-6),
    (16, 0, 20, 40, False, 1e-2),
    (32, 0, 17, 72, False, 1e-2),
]


@pytest.mark.parametrize(("bits", "block", "results", "columns", "pointed", "size"), CASES)
@pytest.mark.parametrize(("factor", "pair"), [(1.0, ""), (1 / 16, ""), (1.0, "silu")])
def test_unpacked_is_the_weight(
    tmp_path: Path,
    bits: Any,
    block: int,
    results: int,
    columns: int,
    pointed: bool,
    size: float,
    factor: float,
    pair: Any,
) -> None:
    if pair and results % 16:
        pytest.skip("its halves are no whole tiles, so nothing joins them")
    random = np.random.default_rng(bits + results)
    contents: dict[str, np.ndarray] = {}
    if bits >= 16:
        contents["codes"] = random.normal(0, size, (results, columns)).astype(np.float16 if bits == 16 else np.float32)
        want = contents["codes"].astype(np.float32)
    else:
        blocks = columns // block
        codes = random.integers(0, 1 << bits, (results, columns), np.uint8)
        points = random.integers(0, 1 << bits, (results, blocks), np.uint8)
        scales = random.uniform(size / 4, size, (results, blocks)).astype(np.float32)
        contents |= {"codes": _nibbles(codes) if bits == 4 else codes, "scales": scales}
        if pointed:
            contents["zeros"] = _nibbles(points) if bits == 4 else points
        else:
            points[:] = 1 << bits - 1
        want = (codes.astype(np.float32) - np.repeat(points, block, 1)) * np.repeat(scales, block, 1)
    codes_at, scales_at, zeros_at = (name if name in contents else "" for name in ("codes", "scales", "zeros"))
    weight = GemmWeight(results, columns, bits, block, codes_at, scales_at, zeros_at, "", 0, results, pair)
    cuda = FakeCuda()
    packed = _weights(cuda, tmp_path, contents).packed(_step(tmp_path, contents), weight)
    to = cuda.alloc(2 * results * columns)
    enqueue_unpack(cuda, PackedLayout.of(weight), packed.records, to, packed.factor * factor, pair, cuda.stream())
    got = np.zeros((results, columns), np.float16)
    cuda.get(to, got)
    # A scale is rounded to half precision, and then the weight is.
    apart = np.abs(got - want * factor)
    assert (apart <= np.abs(want * factor) * 2e-3 + 2.0**-24).all()
    assert got.any()


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """Two a byte, the first in its lower half."""
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    joined: np.ndarray = codes[:, ::2] | codes[:, 1::2] << 4
    return joined


def _step(folder: Path, contents: dict[str, np.ndarray]) -> Any:
    """What says where weights lie: each in a file of its own."""
    for name, content in contents.items():
        (folder / name).write_bytes(content.tobytes())
    records = {
        name: StepWeight(name, str(content.dtype), content.shape, 0, content.nbytes)
        for name, content in contents.items()
    }
    return SimpleNamespace(weights=records)


def _weights(cuda: FakeCuda, folder: Path, contents: dict[str, np.ndarray]) -> PackedWeights:
    bundle: Any = SimpleNamespace(path=folder, file=lambda name: folder / name)
    return PackedWeights(cuda, bundle)
