"""Places for boxes joined by arrows, in rows from top to bottom; arrows that pass a row go between its boxes.

The method is that of Sugiyama, Tagawa and Toda (1981): rows by the longest path, order by the mean of neighbours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise

SWEEPS = 24
"""How often rows are put in order, and moved, by what they are joined to."""


@dataclass(frozen=True, slots=True)
class Bend:
    """Where an arrow passes a row that is between its ends."""

    start: str
    end: str
    row: int


Node = str | Bend


@dataclass(frozen=True, slots=True)
class Layout:
    """Boxes, placed.

    Attributes:
        rows: From top to bottom, each from left to right.
        middles: The x of each node's middle, within the width.
        arrows: For each, the nodes that it goes through.
        width: Of all, in pixels.
    """

    rows: tuple[tuple[Node, ...], ...]
    middles: dict[Node, float]
    arrows: tuple[tuple[Node, ...], ...]
    width: float


def place(
    names: Iterable[str],
    edges: Collection[tuple[str, str]],
    width: float | None,
    box: float | Mapping[str, float],
    bend: float,
    gap: float,
) -> Layout:
    """Place boxes and arrows.

    Args:
        names: Of the boxes, each once.
        edges: Arrows, each from a box to another, without a circle.
        width: Of all, in pixels, as are all lengths; None for as much as the widest row needs.
        box: Width of a box; of every box the same, or by name.
        bend: Width that an arrow needs where it passes a row.
        gap: Between two nodes of a row.
    """
    level = _levels(names := tuple(names), edges)
    rows: list[list[Node]] = [[] for _ in range(1 + max(level.values(), default=0))]
    for name in names:
        rows[level[name]].append(name)
    arrows: list[tuple[Node, ...]] = []
    for start, end in edges:
        bends = [Bend(start, end, row) for row in range(level[start] + 1, level[end])]
        for each in bends:
            rows[each.row].append(each)
        arrows.append((start, *bends, end))
    neighbours: dict[Node, list[Node]] = {node: [] for row in rows for node in row}
    for arrow in arrows:
        for above, below in pairwise(arrow):
            neighbours[above].append(below)
            neighbours[below].append(above)
    sizes = {node: bend if isinstance(node, Bend) else _size(box, node) for row in rows for node in row}
    if width is None:
        width = max((sum(sizes[node] for node in row) + gap * (len(row) - 1) for row in rows), default=0.0)
    middles = _spread(rows, width)
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = {node: _mean([middles[each] for each in neighbours[node]], middles[node]) for node in row}
            if sweep < SWEEPS // 2:
                row.sort(key=lambda node: (wanted[node], str(node)))
            middles |= _apart([(node, wanted[node], sizes[node]) for node in row], width, gap)
    return Layout(tuple(map(tuple, rows)), middles, tuple(arrows), width)


def _size(box: float | Mapping[str, float], name: str) -> float:
    return box[name] if isinstance(box, Mapping) else box


def _levels(names: Iterable[str], edges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """The row of each box: one below the lowest of those that point at it."""
    before: dict[str, list[str]] = {name: [] for name in names}
    for start, end in edges:
        before[end].append(start)
    level: dict[str, int] = {}
    for name in TopologicalSorter(before).static_order():
        level[name] = max((level[each] + 1 for each in before[name]), default=0)
    return level


def _spread(rows: Sequence[Sequence[Node]], width: float) -> dict[Node, float]:
    return {node: width * (place + 1) / (len(row) + 1) for row in rows for place, node in enumerate(row)}


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _apart(row: Sequence[tuple[Node, float, float]], width: float, gap: float) -> Iterator[tuple[Node, float]]:
    """Move the nodes of a row apart, in their order, each as near to where it wants to be as there is room for."""
    sizes = [size for _, _, size in row]
    # Pushed to the right only, and to the left only: both keep the distances, and so does the middle of the two.
    right = _pushed([wanted for _, wanted, _ in row], sizes, width, gap)
    mirrored = _pushed([width - wanted for _, wanted, _ in reversed(row)], sizes[::-1], width, gap)
    left = [width - place for place in reversed(mirrored)]
    return ((node, (a + b) / 2) for (node, _, _), a, b in zip(row, right, left, strict=True))


def _pushed(wanted: Sequence[float], sizes: Sequence[float], width: float, gap: float) -> list[float]:
    """Places from left to right, each at least where it wants to be; what is too far right is pushed back."""
    places: list[float] = []
    for index, (want, size) in enumerate(zip(wanted, sizes, strict=True)):
        least = size / 2 if not index else places[-1] + (sizes[index - 1] + size) / 2 + gap
        places.append(max(want, least))
    most = width
    for index in reversed(range(len(places))):
        places[index] = min(places[index], most - sizes[index] / 2)
        most = places[index] - sizes[index] / 2 - gap
    return places
