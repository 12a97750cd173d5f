"""Constants of ONNX graphs that are read when they are asked for, whole or some rows of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]


class Rows(Protocol):
    """An array that is read in parts along its first axis; a NumPy array is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    def __getitem__(self, rows: slice, /) -> Array:
        """These rows."""


class UnreadConstant(ir.LazyTensor):
    """A constant that is read when it is asked for, and not kept.

    Attributes:
        open: Gives what reads its rows; checks of its content come then.
    """

    open: Callable[[], Rows]

    def __init__(self, name: str, dtype: ir.DataType, shape: Sequence[int], open: Callable[[], Rows]) -> None:  # noqa: A002
        """Make one.

        Args:
            name: Its name.
            dtype: Its type.
            shape: Its shape.
            open: As the attribute.
        """
        super().__init__(self._whole, dtype=dtype, shape=ir.Shape(shape), name=name)
        self.open = open

    def _whole(self) -> ir.TensorProtocol:
        return ir.tensor(self.open()[:], dtype=self.dtype, name=self.name)


def rows_of(tensor: ir.TensorProtocol) -> Rows:
    """What reads a constant's rows: as they are asked for, where it is not read yet."""
    return tensor.open() if isinstance(tensor, UnreadConstant) else tensor.numpy()


class FirstRows:
    """The first rows of an array."""

    def __init__(self, whole: Rows, count: int) -> None:
        """Leave out what comes after `count` rows."""
        self._whole, self.shape = whole, (min(count, whole.shape[0]), *whole.shape[1:])

    def __getitem__(self, rows: slice, /) -> Array:
        first, last, _ = rows.indices(self.shape[0])
        return self._whole[first:last]


class Stacked:
    """The rows of several arrays, one below the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        """Stack them; they agree in all sizes but the first."""
        self._parts = parts
        self.shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])

    def __getitem__(self, rows: slice, /) -> Array:
        first, last, _ = rows.indices(self.shape[0])
        found, before = [], 0
        for part in self._parts:
            low, high = max(first - before, 0), min(last - before, part.shape[0])
            if low < high:
                found.append(part[low:high])
            before += part.shape[0]
        if not found:
            return self._parts[0][0:0]
        return found[0] if len(found) == 1 else np.concatenate(found)
