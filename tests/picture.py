"""A drawing of the house: a floor for each layer, rooms in rows, arrows from a room to those that it imports."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from adaptc.report.drawing.layout import Bend, Layout, Node, place
from tests.rooms import House, Room

LEFT, RIGHT = "adaptc", ("adaptc.passes", "adaptc.ir", "adaptc.runtime")
"""The floor at the left, and those at the right from top to bottom. Each imports what is below or right of it."""

FONT = "system-ui, Helvetica, Arial, sans-serif"

WIDTHS = (530.0, 770.0)
"""Of the two columns. All lengths are pixels."""

MARGIN, AISLE = 16.0, 44.0
"""Around the picture; between floors."""

BEND, GAP = 8.0, 12.0
"""Width of an arrow that passes a row; between two nodes of a row."""

LETTER, LINE, HEAD, PAD = 6.0, 13.0, 19.0, 8.0
"""Width of a letter and height of a line of text in a room; height of the room's name; around both."""

STEP, TOP = 34.0, 52.0
"""Between two rows, where arrows run; above the first row."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a floor looks: its title, what it is, its colours, and the width of its rooms."""

    title: str
    about: str
    fill: str
    ink: str
    room: float


STYLES = {
    "adaptc": Style("adaptc/", "the compiler, its measurements and the command line", "#edf2fb", "#34568f", 225.0),
    "adaptc.passes": Style("passes/", "rewrites of programs, by what they are for", "#eff6ec", "#45752f", 176.0),
    "adaptc.ir": Style("adaptc/ir/", "what compiler and passes hand to each other", "#fcf5e5", "#8a6716", 420.0),
    "adaptc.runtime": Style("runtime/", "all that a deployed bundle needs", "#f8eef0", "#963c49", 270.0),
}


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a floor is drawn."""

    x: float
    y: float
    width: float
    height: float


def draw(house: House) -> str:
    """The picture as SVG."""
    layouts = {
        name: _placed(house, name, width - 2 * MARGIN)
        for name, width in ((LEFT, WIDTHS[0]), *((name, WIDTHS[1]) for name in RIGHT))
    }
    frames, y = {}, MARGIN
    for name in RIGHT:
        frames[name] = Frame(MARGIN + WIDTHS[0] + AISLE, y, WIDTHS[1], _needed(house, layouts[name]))
        y += frames[name].height + AISLE
    frames[LEFT] = Frame(MARGIN, MARGIN, WIDTHS[0], max(y - AISLE - MARGIN, _needed(house, layouts[LEFT])))
    width, height = 2 * MARGIN + sum(WIDTHS) + AISLE, 2 * MARGIN + frames[LEFT].height
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" font-family="{FONT}">',
        "<title>The rooms of adaptc and their imports</title>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        *_between(house, frames),
    ]
    for name, frame in frames.items():
        parts += _floor(house, layouts[name], frame, STYLES[name])
    return "\n".join([*parts, "</svg>\n"])


def _placed(house: House, name: str, width: float) -> Layout:
    floor = house.floor(name)
    return place(sorted(floor), sorted(floor.edges), width, STYLES[name].room, BEND, GAP)


def _needed(house: House, layout: Layout) -> float:
    """The least height of a floor."""
    return TOP + sum(_row_height(house, row) + STEP for row in layout.rows) - STEP + MARGIN


def _floor(house: House, layout: Layout, frame: Frame, style: Style) -> Iterator[str]:
    """A floor with its title, arrows and rooms."""
    yield (
        f'<rect x="{frame.x:.0f}" y="{frame.y:.0f}" width="{frame.width:.0f}" height="{frame.height:.0f}" rx="10" '
        f'fill="{style.fill}" stroke="{style.ink}" stroke-opacity=".35"/>'
    )
    yield (
        f'<text x="{frame.x + MARGIN:.0f}" y="{frame.y + 28:.0f}" font-size="16" font-weight="600" fill="{style.ink}">'
        f'{style.title}<tspan dx="12" font-size="11.5" font-weight="400">{style.about}</tspan></text>'
    )
    left = frame.x + MARGIN
    edges: dict[Node, tuple[float, float]] = {}
    boxes: list[str] = []
    y = frame.y + TOP
    step = STEP + (frame.height - _needed(house, layout)) / max(1, len(layout.rows) - 1)
    for row in layout.rows:
        height = _row_height(house, row)
        for node in row:
            own = height if isinstance(node, Bend) else _height(house.rooms[node])
            edges[node] = y + (height - own) / 2, y + (height + own) / 2
            if not isinstance(node, Bend):
                boxes += _box(house.rooms[node], left + layout.middles[node] - style.room / 2, edges[node][0], style)
        y += height + step
    for nodes in layout.arrows:
        yield _arrow([(left + layout.middles[node], *edges[node]) for node in nodes], style.ink)
    yield from boxes


def _arrow(places: list[tuple[float, float, float]], ink: str) -> str:
    """An arrow through places (x, top, bottom): from the first one's bottom to the last one's top."""
    path = f"M{places[0][0]:.0f} {places[0][2]:.0f}"
    for (x0, _, y0), (x1, y1, _) in pairwise(places):
        middle = (y0 + y1) / 2
        path += f"L{x0:.0f} {y0:.0f}C{x0:.0f} {middle:.0f} {x1:.0f} {middle:.0f} {x1:.0f} {y1:.0f}"
    x, y, _ = places[-1]
    tip = f'<path d="M{x:.0f} {y:.0f}l-4 -8h8z" fill="{ink}"/>'
    return f'<path d="{path}" fill="none" stroke="{ink}" stroke-opacity=".7" stroke-width="1.3"/>{tip}'


def _row_height(house: House, row: tuple[Node, ...]) -> float:
    return max(_height(house.rooms[node]) for node in row if not isinstance(node, Bend))


def _height(room: Room) -> float:
    return HEAD + LINE * len(_lines(room)) + 2 * PAD


def _lines(room: Room) -> list[str]:
    return textwrap.wrap(room.idea, int((STYLES[room.floor].room - 2 * PAD) / LETTER))


def _box(room: Room, x: float, y: float, style: Style) -> Iterator[str]:
    yield (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{style.room:.0f}" height="{_height(room):.0f}" rx="6" fill="#ffffff" '
        f'stroke="{style.ink}"/>'
    )
    yield _text(x + PAD, y + PAD + 11, room.label, style.ink, 13, bold=True)
    for index, line in enumerate(_lines(room)):
        yield _text(x + PAD, y + PAD + HEAD + 9 + index * LINE, line, "#2b3346", 10.5)


def _text(x: float, y: float, text: str, ink: str, size: float, *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size:g}"{weight} fill="{ink}">{html.escape(text)}</text>'


def _between(house: House, frames: dict[str, Frame]) -> Iterator[str]:
    """Broad arrows from the left floor to those at the right that it imports, and from each of these to the next."""
    pairs = house.between_floors()
    for name in RIGHT:
        if (LEFT, name) in pairs:
            frame = frames[name]
            y = frame.y + min(frame.height / 2, 3 * TOP)
            yield _broad(frame.x - AISLE, y, frame.x, y)
    for upper, lower in pairwise(RIGHT):
        if (upper, lower) in pairs:
            x = frames[upper].x + frames[upper].width / 2
            yield _broad(x, frames[lower].y - AISLE, x, frames[lower].y)


def _broad(x0: float, y0: float, x1: float, y1: float) -> str:
    """An arrow along an axis, with room at both ends."""
    tip = f"M{x1:.0f} {y1:.0f}" + ("l-14 -9v18z" if y0 == y1 else "l-9 -14h18z")
    line = f"M{x0 + 6:.0f} {y0:.0f}H{x1 - 12:.0f}" if y0 == y1 else f"M{x0:.0f} {y0 + 6:.0f}V{y1 - 12:.0f}"
    return f'<path d="{line}" stroke="#8791a5" stroke-width="5"/><path d="{tip}" fill="#8791a5"/>'
