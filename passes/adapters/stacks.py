"""The matrices of several adapters for one product, in one A and a B for each group of its outputs.

Columns of A are ranks: those of a group stand together, and within it each adapter's. Side by side each adapter has
columns of its own; in stacks, one matrix an adapter, all use the same ones, and index 0 is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from adaptc.ir.low_rank import AdaptedProduct, Array, KeptAdapter, LowRank
from adaptc.ir.unread.constants import UnreadConstant

Changes = tuple[LowRank | None, ...]
"""What an adapter adds to each of some parts; None where it adds nothing."""


@dataclass(frozen=True, slots=True)
class Group:
    """Some of a product's outputs, which follow each other, with a B of their own.

    Attributes:
        first: The first of A's columns that they are made of.
        widths: Of the parts.
        changes: For each adapter.
        together: Whether the adapters' columns stand side by side.
    """

    first: int
    widths: tuple[int, ...]
    changes: tuple[Changes, ...]
    together: bool

    @property
    def outputs(self) -> int:
        """How many outputs they are."""
        return sum(self.widths)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Columns of each adapter."""
        return tuple(sum(each.rank for each in _layers(changes)) for changes in self.changes)

    @property
    def columns(self) -> int:
        """Columns of all."""
        return sum(self.ranks) if self.together else max(self.ranks)

    def layers(self) -> Iterator[tuple[int, LowRank, int]]:
        """Each layer with an A of its own: its adapter's index, what it is, and its first column in the group."""
        before = 0
        for index, (changes, rank) in enumerate(zip(self.changes, self.ranks, strict=True)):
            column = before
            for layer in _layers(changes):
                yield index, layer, column
                column += layer.rank
            before += rank if self.together else 0


@dataclass(frozen=True, slots=True)
class Stack:
    """What all adapters add to one product.

    Attributes:
        inputs: Width of what is multiplied.
        groups: Of its outputs, in order.
        together: Whether adapters stand side by side.
        count: How many adapters there are.
    """

    inputs: int
    groups: tuple[Group, ...]
    together: bool
    count: int

    @property
    def columns(self) -> int:
        """Columns of A."""
        return sum(group.columns for group in self.groups)

    def owners(self) -> tuple[int, ...]:
        """Index of the adapter, from 1, that each column belongs to, where they stand side by side."""
        return tuple(index for group in self.groups for index, rank in enumerate(group.ranks, 1) for _ in range(rank))

    def a(self, name: str) -> UnreadConstant:
        """A, float32 [inputs, columns], or [adapters + 1, inputs, columns] in stacks; made when it is asked for."""

        def fill(into: Array) -> None:
            for group in self.groups:
                for index, layer, column in group.layers():
                    first = group.first + column
                    self._of(into, index)[:, first : first + layer.rank] = layer.a().T

        return self._constant(name, (self.inputs, self.columns), fill)

    def b(self, name: str, group: Group) -> UnreadConstant:
        """B of a group, float32 [columns, outputs], or [adapters + 1, columns, outputs]; made when it is asked for."""

        def fill(into: Array) -> None:
            for index, layer, column in group.layers():
                start = 0
                for change, width in zip(group.changes[index], group.widths, strict=True):
                    if change is not None and change.module == layer.module:
                        rows = self._of(into, index)[column : column + layer.rank]
                        rows[:, start : start + width] = change.b().T
                    start += width

        return self._constant(name, (group.columns, group.outputs), fill)

    def _of(self, whole: Array, index: int) -> Array:
        return whole if self.together else whole[index + 1]

    def _constant(self, name: str, shape: tuple[int, int], fill: Callable[[Array], None]) -> UnreadConstant:
        whole = shape if self.together else (self.count + 1, *shape)

        def made() -> Array:
            array = np.zeros(whole, np.float32)
            fill(array)
            return array

        return UnreadConstant(name, ir.DataType.FLOAT, whole, made)


def stacked(product: AdaptedProduct, kept: Sequence[KeptAdapter], most: int) -> Stack:
    """What adapters add to a product.

    Args:
        product: The product.
        kept: The adapters, in order.
        most: How many times the columns of a stack may stand side by side.
    """
    names, widths = zip(*product.parts, strict=True)
    changes = [tuple(adapter.changes.get(name) for name in names) for adapter in kept]
    spans = _spans(changes)

    def groups(*, together: bool) -> tuple[Group, ...]:
        made: list[Group] = []
        for start, end in spans:
            first = made[-1].first + made[-1].columns if made else 0
            made.append(Group(first, widths[start:end], tuple(each[start:end] for each in changes), together))
        return tuple(made)

    stack = Stack(product.inputs, groups(together=False), together=False, count=len(kept))
    joined = Stack(product.inputs, groups(together=True), together=True, count=len(kept))
    return joined if joined.columns <= most * stack.columns else stack


def _spans(changes: Sequence[Changes]) -> list[tuple[int, int]]:
    """Where groups of parts begin and end: one for each part that is changed, and those after it that are not.

    Parts of one layer share its A, and so a group.
    """
    count = len(changes[0])
    modules = [{each[part].module for each in changes if each[part] is not None} for part in range(count)]  # type: ignore[union-attr]
    if sum(map(len, modules)) > len(set().union(*modules)):
        return [(0, count)]
    starts = [part for part in range(count) if modules[part]]
    return [*zip([0, *starts[1:]], [*starts[1:], count], strict=True)]


def _layers(parts: Changes) -> list[LowRank]:
    """Changes with an A of their own."""
    found: dict[str, LowRank] = {}
    for each in parts:
        if each is not None:
            found.setdefault(each.module, each)
    return [*found.values()]
