"""Memory of this process: arrays that cost nothing until they are used, and returning freed memory."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from typing import Any

import numpy as np
import numpy.typing as npt


def lazy_zeros(shape: tuple[int, ...], dtype: str = "float32") -> npt.NDArray[Any]:
    """An array of zeros whose pages are mapped when they are first written.

    `np.zeros` does the same only where the C library gets the memory from the system. After large blocks were freed,
    as when a model was loaded, it takes the memory from its heap and writes all of it.

    Raises:
        MemoryError: the system does not have so much memory.
    """
    size = np.dtype(dtype).itemsize * math.prod(shape)
    if size == 0:
        return np.zeros(shape, dtype)
    try:
        if sys.platform == "win32":
            pages = mmap.mmap(-1, size)
        else:
            pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError) as error:  # the latter two: more than an address can count
        raise MemoryError(str(error)) from error
    return np.frombuffer(pages, dtype).reshape(shape)


def trim() -> None:
    """Return free memory of the C library's heap to the system, where the library can."""
    if sys.platform == "linux":
        # Other C libraries than GNU's have no such function.
        give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if give_back is not None:
            give_back(0)
