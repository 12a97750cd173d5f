"""The matrices of several adapters for one product, one upon another: A and B by the adapter's index, zeros at 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from adaptc.ir.low_rank import AdaptedProduct, Array, KeptAdapter, LowRank
from adaptc.ir.unread.constants import UnreadConstant


@dataclass(frozen=True, slots=True)
class Stack:
    """What all adapters add to one product.

    Attributes:
        product: The product.
        changes: For each adapter, what it adds to each part; None where it adds nothing.
    """

    product: AdaptedProduct
    changes: tuple[tuple[LowRank | None, ...], ...]

    @property
    def inputs(self) -> int:
        """Width of what is multiplied."""
        return self.product.inputs

    @property
    def outputs(self) -> int:
        """Width of the product."""
        return sum(width for _, width in self.product.parts)

    @property
    def rank(self) -> int:
        """The largest number of columns that an adapter has."""
        return max(sum(each.rank for each in _layers(parts)) for parts in self.changes)

    def constants(self, stem: str) -> tuple[UnreadConstant, UnreadConstant]:
        """A and B of all adapters, made when they are asked for.

        Args:
            stem: What their names begin with.

        Returns:
            float32 [adapters + 1, inputs, rank] and [adapters + 1, rank, outputs].
        """
        count, rank = len(self.changes) + 1, self.rank
        a, b = (count, self.inputs, rank), (count, rank, self.outputs)
        return _constant(f"{stem}.A", a, self._fill_a), _constant(f"{stem}.B", b, self._fill_b)

    def _fill_a(self, into: Array) -> None:
        for index, parts in enumerate(self.changes, 1):
            column = 0
            for change in _layers(parts):
                into[index, :, column : column + change.rank] = change.a().T
                column += change.rank

    def _fill_b(self, into: Array) -> None:
        for index, parts in enumerate(self.changes, 1):
            layers = _layers(parts)
            firsts = np.cumsum([0, *(each.rank for each in layers)])
            row = {each.module: int(first) for each, first in zip(layers, firsts, strict=False)}
            start = 0
            for change, (_, width) in zip(parts, self.product.parts, strict=True):
                if change is not None:
                    first = row[change.module]
                    into[index, first : first + change.rank, start : start + width] = change.b().T
                start += width


def stacked(product: AdaptedProduct, kept: Sequence[KeptAdapter]) -> Stack:
    """What adapters add to a product."""
    return Stack(product, tuple(tuple(each.changes.get(name) for name, _ in product.parts) for each in kept))


def _layers(parts: Sequence[LowRank | None]) -> list[LowRank]:
    """Changes with an A of their own: parts of one joined layer share theirs."""
    return [*{each.module: each for each in reversed(parts) if each is not None}.values()][::-1]


def _constant(name: str, shape: tuple[int, ...], fill: Callable[[Array], None]) -> UnreadConstant:
    def made() -> Array:
        array = np.zeros(shape, np.float32)
        fill(array)
        return array

    return UnreadConstant(name, ir.DataType.FLOAT, shape, made)
