"""What the page shows as bars and tables: values that its template turns into HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BarPart:
    """A piece of a bar.

    Attributes:
        kind: What it is: a class of the page's style.
        percent: Its length, of the longest bar's.
    """

    kind: str
    percent: float


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of a chart.

    Attributes:
        name: What it is of.
        parts: From left to right.
        value: The whole, as it is written at the end.
        said: All of it in words.
    """

    name: str
    parts: tuple[BarPart, ...]
    value: str
    said: str


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a column; `number` if what stands below are numbers."""

    text: str
    number: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Heads of columns, and rows of cells."""

    heads: tuple[Head, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars, one below the other.

    Attributes:
        title: What is shown.
        of: What the rows are.
        unit: What the values are.
        kinds: Of parts, in order; a legend names them if they are several.
        bars: From top to bottom.
        table: The same as numbers.
        note: What a reader should know.
    """

    title: str
    of: str
    unit: str
    kinds: tuple[str, ...]
    bars: tuple[Bar, ...]
    table: Table
    note: str = ""


def chart(
    title: str,
    rows: Sequence[tuple[str, Mapping[str, float]]],
    shown: Callable[[float], str],
    *,
    of: str,
    unit: str,
    order: Sequence[str],
    note: str = "",
) -> Chart:
    """A chart of rows that are made of parts.

    Args:
        title: What is shown.
        rows: (name, size by kind), from top to bottom.
        shown: Writes a size.
        of: What the rows are.
        unit: What the sizes are.
        order: Kinds, from left to right; only those that occur are shown.
        note: What a reader should know.
    """
    most = max((sum(sizes.values()) for _, sizes in rows), default=0) or 1
    kinds = tuple(kind for kind in order if any(sizes.get(kind) for _, sizes in rows))
    bars = []
    for name, sizes in rows:
        parts = tuple(BarPart(kind, 100 * sizes[kind] / most) for kind in kinds if sizes.get(kind))
        said = ", ".join(f"{kind} {shown(sizes[kind])}" for kind in kinds if sizes.get(kind))
        bars.append(Bar(name, parts, shown(sum(sizes.values())), said))
    cells = tuple(
        (name, *(shown(sizes.get(kind, 0)) for kind in kinds), shown(sum(sizes.values()))) for name, sizes in rows
    )
    table = Table((Head(of), *(Head(kind, True) for kind in kinds), Head("together", True)), cells)
    return Chart(title, of, unit, kinds, tuple(bars), table, note)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> Table:
    """A table whose first columns are words and whose others are numbers.

    Args:
        heads: Of the columns.
        rows: Cells.
        words: How many columns are words.
    """
    return Table(tuple(Head(text, index >= words) for index, text in enumerate(heads)), tuple(map(tuple, rows)))
