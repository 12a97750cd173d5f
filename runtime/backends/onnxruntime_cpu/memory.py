"""Memory of this process: room that costs nothing until it is used, and giving back what is free."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys

import numpy as np
import numpy.typing as npt


def room(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Zeros, float32, whose pages are mapped when they are first written.

    NumPy's own are so only where the C library asks the system for them, which it does less the larger the blocks are
    that were freed: after a model was loaded, caches came from its heap and were written in full.

    Raises:
        MemoryError: there is not so much.
    """
    size = 4 * math.prod(shape)
    if size == 0:
        return np.zeros(shape, np.float32)
    try:
        if sys.platform == "win32":
            pages = mmap.mmap(-1, size)
        else:
            pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError) as error:  # the latter two: more than an address can count
        raise MemoryError(str(error)) from error
    return np.frombuffer(pages, np.float32).reshape(shape)


def trim() -> None:
    """Give free memory of the C library's heap back to the system, where the library can."""
    if sys.platform == "linux":
        # Other C libraries than GNU's have no such function.
        give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if give_back is not None:
            give_back(0)
