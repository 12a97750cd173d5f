"""Constants that passes make, kept in a file without a name until they are written to their place."""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from adaptc.errors import PassError
from adaptc.ir.unread.constants import UnreadConstant

LEAST = 1 << 16
"""Bytes of the smallest array that goes to the file."""


ALIGNED = 64
"""Arrays begin at multiples of this many bytes."""


class Spool:
    """Moves arrays to a file as they are made, and reads them when they are asked for.

    So a program holds the constants of one matrix in memory, however large the model is. The file has no name: it is
    gone with the last constant that is in it.
    """

    def __init__(self, scratch: Callable[[], BinaryIO]) -> None:
        """Make one.

        Args:
            scratch: Opens the file; called for the first array that goes there.
        """
        self._scratch, self._end, self._lock = scratch, 0, Lock()
        self._file: BinaryIO | None = None

    def constant(self, array: npt.NDArray[Any], name: str) -> ir.TensorProtocol:
        """An array as a constant.

        Raises:
            PassError: the file cannot be written; the disk may be full.
        """
        tensor = ir.tensor(array, name=name)
        if array.nbytes < LEAST:
            return tensor
        file, offset = self._write(array, name)
        kept = _Kept(file, self._lock, offset, array.dtype, array.shape)
        return UnreadConstant(name, tensor.dtype, array.shape, lambda: kept)

    def array(self, array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        """An array as a view of the file, which must not be written to: its pages are in memory while there is room.

        Raises:
            PassError: as `constant`.
        """
        if array.nbytes < LEAST:
            return array
        file, offset = self._write(array, name)
        return np.asarray(np.memmap(file, array.dtype, "r", offset, array.shape))

    def _write(self, array: npt.NDArray[Any], name: str) -> tuple[BinaryIO, int]:
        """Write an array; the file, and where in it the array begins."""
        try:
            file = self._file = self._file or self._scratch()
            with self._lock:
                offset = self._end
                file.seek(offset)
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                file.flush()
                self._end += -(-array.nbytes // ALIGNED) * ALIGNED
        except OSError as error:
            raise PassError(f"{name}: cannot write to a scratch file: {error.strerror or error}") from error
        return file, offset


class _Kept:
    """An array in a file; its rows are read as they are asked for."""

    def __init__(self, file: BinaryIO, lock: Lock, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._file, self._lock, self._offset, self._dtype, self.shape = file, lock, offset, dtype, shape

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        first, last, _ = rows.indices(self.shape[0])
        row = math.prod(self.shape[1:]) * self._dtype.itemsize
        found = np.empty((max(0, last - first), *self.shape[1:]), self._dtype)
        with self._lock:
            self._file.seek(self._offset + first * row)
            self._file.readinto(found.reshape(-1).view(np.uint8).data)  # type: ignore[attr-defined]
        return found
