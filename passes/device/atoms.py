"""A decoder's graph as atoms: products, attention, lookups, and lines that work on one row at a time."""

from __future__ import annotations

from dataclasses import dataclass

from adaptc.runtime.bundle.gpu_steps.device_step import AttentionLayer, GemmWeight, LookupTable, RowOp

Region = tuple[int, bool]
"""Where an atom runs: (-1, False) always; (gate, False) in the gate's block; (gate, True) in what stands in for it."""

ALWAYS: Region = (-1, False)


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight that a line reads.

    Attributes:
        name: Of the initializer.
        width: How many numbers.
    """

    name: str
    width: int


@dataclass(eq=False, slots=True)
class Atom:
    """Something that is computed for each row.

    Attributes:
        width: Numbers of a row.
        args: What it reads.
        region: Where it runs.
        head: Whether it lies behind the place from which a prompt needs its last token only.
    """

    width: int
    args: tuple[Operand, ...]
    region: Region = ALWAYS
    head: bool = False


@dataclass(eq=False, slots=True)
class StateInput(Atom):
    """The hidden states that a tail reads."""


@dataclass(eq=False, slots=True)
class Line(Atom):
    """One line of a row program; see `RowLine`."""

    op: RowOp = "slice"
    numbers: tuple[float, ...] = ()


@dataclass(eq=False, slots=True)
class Gemm(Atom):
    """A product; several that give neighbouring parts of one value are one atom."""

    weights: tuple[GemmWeight, ...] = ()


@dataclass(eq=False, slots=True)
class Attention(Atom):
    """Attention of a layer over query, key and value, or over one value that has all three."""

    about: AttentionLayer | None = None


@dataclass(eq=False, slots=True)
class TableLookup(Atom):
    """Rows of an embedding."""

    table: LookupTable | None = None


@dataclass(eq=False, slots=True)
class Alternative(Atom):
    """A block's result, `args[0]`, or what stands in for it, `args[1]`; without a second one zeros do.

    Attributes:
        gate: Which gate chooses.
    """

    gate: int = -1


Operand = Atom | Weight | float
"""What an atom reads: another atom, a weight, or a number."""
