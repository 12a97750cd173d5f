"""Weights as a bundle stores them, and what they mean, for tests of the kernels that multiply by them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.kernel_steps.packed_weights import PackedWeights
from adaptc.runtime.bundle.gpu_steps.device_step import VERSION, DeviceStep, GemmWeight, StepWeight

Bits = Literal[4, 8, 16, 32]


@dataclass(frozen=True, slots=True)
class Files:
    """As much of a `Bundle` as weights are read from."""

    path: Path

    def file(self, name: str) -> Path:
        """A file's place."""
        return self.path / name


@dataclass(frozen=True, slots=True)
class Drawn:
    """A random weight.

    Attributes:
        weight: How calls name it.
        step: Says where it lies.
        values: What it means, float64[results, columns].
        bias: float32[results], or None.
        files: Where it lies.
    """

    weight: GemmWeight
    step: DeviceStep
    values: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float32] | None
    files: Files

    def packed(self, cuda: Cuda) -> PackedWeights:
        """What puts it onto a GPU."""
        return PackedWeights(cuda, self.files)  # type: ignore[arg-type]


def draw(
    folder: Path, bits: Bits, results: int, columns: int, block: int = 32, *, zeros: bool = False, bias: bool = False
) -> Drawn:
    """A weight of MatMulNBits in `folder`, or of floats for 16 and 32 bits."""
    random = np.random.default_rng(bits * 1000 + results + columns)
    arrays: dict[str, npt.NDArray[Any]] = {}
    if bits > 8:
        arrays["codes"] = random.standard_normal((results, columns)).astype(f"float{bits}")
        values = arrays["codes"].astype(np.float64)
    else:
        values = _grid(random, arrays, bits, results, columns, block, zeros=zeros)
    if bias:
        arrays["bias"] = random.standard_normal(results).astype(np.float32)
    weights, content = {}, b""
    for name, array in arrays.items():
        content += bytes(-len(content) % 64)
        weights[name] = StepWeight("data", str(array.dtype), array.shape, len(content), array.nbytes)
        content += array.tobytes()
    (folder / "data").write_bytes(content)
    scales, points, added = (name if name in arrays else "" for name in ("scales", "zeros", "bias"))
    weight = GemmWeight(results, columns, bits, block if bits < 16 else 0, "codes", scales, points, added, 0, results)
    step = DeviceStep(VERSION, "hidden", "logits", (), (weight,), (), (), (), (), {}, weights, ())
    return Drawn(weight, step, values, arrays.get("bias"), Files(folder))


def _grid(
    random: np.random.Generator,
    arrays: dict[str, npt.NDArray[Any]],
    bits: int,
    results: int,
    columns: int,
    block: int,
    *,
    zeros: bool,
) -> npt.NDArray[np.float64]:
    blocks = -(-columns // block)
    codes = random.integers(0, 1 << bits, (results, blocks * block), dtype=np.uint8)
    scales = (random.uniform(0.5, 2.0, (results, blocks)) * 1e-3).astype(np.float32)
    points = random.integers(0, 1 << bits, (results, blocks), dtype=np.uint8)
    arrays["codes"] = _joined(codes, bits).reshape(results, blocks, -1)
    arrays["scales"] = scales.reshape(-1)
    if zeros:
        arrays["zeros"] = _joined(points, bits).reshape(-1)
    point = points.astype(np.float64) if zeros else np.full(points.shape, float(1 << (bits - 1)))
    grid: npt.NDArray[np.float64] = (codes.reshape(results, blocks, block) - point[..., None]) * scales[..., None]
    return grid.reshape(results, -1)[:, :columns]


def _joined(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Codes of 4 bits two a byte, the lower half first."""
    if bits == 8:
        return codes
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    joined: npt.NDArray[np.uint8] = np.bitwise_or(codes[:, ::2], codes[:, 1::2] * np.uint8(16), dtype=np.uint8)
    return joined
