"""Constants of ONNX graphs that are read when they are asked for, whole or some rows of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from adaptc.ir.unread.rows import Rows


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
