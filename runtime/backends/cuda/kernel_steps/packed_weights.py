"""A bundle's weights on a GPU, in the layout that `packed_gemm.cu` reads; each once, however many graphs read it."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.kernels.packed_gemm import PAIRS, PackedLayout, gemm_kernels
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.gpu_steps.device_step import DeviceStep, GemmWeight, StepWeight
from adaptc.runtime.errors import BundleError, EngineError

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
_BLOCKS, _THREADS = 2048, 256
_PACKED_SCALE = 6  # scales are packed as multiples of a power of two, the largest between 2^6 and 2^7


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """Where a weight lies.

    Attributes:
        records: Address of its records.
        factor: What its results are multiplied by.
    """

    records: int
    factor: float


class PackedWeights:
    """The weights of one bundle.

    Attributes:
        bytes: All that was taken.
    """

    def __init__(self, cuda: Cuda, bundle: Bundle) -> None:
        self.bytes = 0
        self._cuda, self._bundle = cuda, bundle
        self._files: dict[str, npt.NDArray[np.uint8]] = {}
        self._plain: dict[tuple[str, int, str], int] = {}
        self._packed: dict[tuple[str, int, int, str], PackedWeight] = {}
        self._staging, self._size = 0, 0
        self._stream = cuda.stream()

    def plain(self, step: DeviceStep, name: str, dtype: str | None = None) -> int:
        """The address of a weight as it is stored; 0 for "".

        Args:
            step: Says where it lies.
            name: Its name.
            dtype: The type that is wanted; None for its own.

        Raises:
            BundleError: its file is too short.
            EngineError: the GPU has too little memory.
        """
        if not name:
            return 0
        record = _record(step, name)
        wanted = dtype or record.dtype
        key = record.file, record.offset, wanted
        if key not in self._plain:
            content = self._array(record)
            self._plain[key] = self._put(content.astype(wanted) if wanted != record.dtype else content)
        return self._plain[key]

    def packed(self, step: DeviceStep, weight: GemmWeight) -> PackedWeight:
        """A weight in the layout of `packed_gemm.cu`.

        Raises:
            BundleError: its file is too short.
            EngineError: the GPU has too little memory, or half precision cannot hold it.
        """
        record = _record(step, weight.codes)
        key = record.file, record.offset, weight.block, weight.pair
        if key not in self._packed:
            layout = PackedLayout.of(weight)
            records = self._take(layout.bytes)
            self._pack_codes(step, weight, layout, records)
            factor = self._pack_scales(step, weight, layout, records) if layout.bits < 16 else 1.0
            self._packed[key] = PackedWeight(records, factor)
        return self._packed[key]

    def done(self) -> None:
        """Give back the memory that packing needed."""
        if self._staging:
            self._cuda.free(self._staging)
        self._staging, self._size = 0, 0
        self._files.clear()

    def _pack_codes(self, step: DeviceStep, weight: GemmWeight, layout: PackedLayout, records: int) -> None:
        content = self._array(_record(step, weight.codes))
        if weight.bits == 32:
            with np.errstate(over="ignore"):
                halves = content.astype(np.float16)
            if not np.isfinite(halves).all():
                raise EngineError(f"{weight.codes}: half precision cannot hold it; weights: int8 or int4 is right")
            content = halves
        content = content.reshape(weight.results, -1)
        args = [(self._stage(content), _POINTER), (records, _POINTER)]
        sizes = [
            (size, _INT)
            for size in (weight.results, weight.columns, content.nbytes // weight.results, PAIRS.index(weight.pair))
        ]
        self._run("pack_codes", layout, [*args, *sizes])

    def _pack_scales(self, step: DeviceStep, weight: GemmWeight, layout: PackedLayout, records: int) -> float:
        scales = self._array(_record(step, weight.scales)).astype(np.float32, copy=False)
        most = float(np.abs(scales).max(initial=0.0))
        factor = 2.0 ** (math.floor(math.log2(most)) - _PACKED_SCALE) if most > 0 else 1.0
        points = self._array(_record(step, weight.zeros)).reshape(weight.results, -1) if weight.zeros else None
        given = self._cuda.alloc(scales.nbytes)
        self._cuda.put(given, scales)
        pointers = (given, 0 if points is None else self._stage(points), records)
        sizes = [(size, _INT) for size in (weight.results, weight.columns, weight.block)]
        ends = [(factor, _FLOAT), (0 if points is None else points.shape[1], _INT), (PAIRS.index(weight.pair), _INT)]
        self._run("pack_scales", layout, [*((each, _POINTER) for each in pointers), *sizes, *ends])
        self._cuda.free(given)
        return factor

    def _run(self, name: str, layout: PackedLayout, args: list[tuple[Any, Any]]) -> None:
        kernel = gemm_kernels(self._cuda, layout)[name]
        self._cuda.launch(kernel, (_BLOCKS,), _THREADS, args, self._stream)
        self._cuda.sync(self._stream)

    def _stage(self, content: npt.NDArray[Any]) -> int:
        """Put an array where the next one will lie too."""
        if content.nbytes > self._size:
            if self._staging:
                self._cuda.free(self._staging)
            self._staging, self._size = self._cuda.alloc(content.nbytes), content.nbytes
        self._cuda.put(self._staging, content)
        return self._staging

    def _put(self, content: npt.NDArray[Any]) -> int:
        address = self._take(content.nbytes)
        self._cuda.put(address, content)
        return address

    def _take(self, size: int) -> int:
        self.bytes += size
        return self._cuda.alloc(size)

    def _array(self, record: StepWeight) -> npt.NDArray[Any]:
        if record.file not in self._files:
            self._files[record.file] = np.memmap(self._bundle.file(record.file), np.uint8, "r")
        content = self._files[record.file]
        if record.offset < 0 or record.offset + record.bytes > len(content):
            raise BundleError(f"{self._bundle.path / record.file}: too short; compile again")
        found = content[record.offset : record.offset + record.bytes].view(np.dtype(record.dtype))
        return found.reshape(record.shape)


def _record(step: DeviceStep, name: str) -> StepWeight:
    record = step.weights.get(name)
    if record is None:
        raise BundleError(f"steps: nothing says where {name!r} lies; compile again")
    return record
