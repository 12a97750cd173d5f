"""A layer's boxes and arrows as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adaptc.report.drawing.layout import Bend, Node, place
from adaptc.report.drawing.shapes import Box, arrow, hexagon, picture, rectangle, shortened, text

WIDTH, HEAD, LINE, PAD = 214.0, 18.0, 14.0, 8.0
STEP, GAP, MARGIN = 28.0, 18.0, 6.0

ENDS, DECIDES = "ends", "decides"


@dataclass(frozen=True, slots=True)
class Operator:
    """A box.

    Attributes:
        name: Its own, in the picture.
        title: What it computes.
        lines: Its module, its result, its weights.
        reads: Names of the boxes whose results it reads.
        style: `ENDS` for what comes from outside and goes there, `DECIDES` for a gate, else its kind as in `places`.
        path: Module path.
    """

    name: str
    title: str
    lines: tuple[str, ...]
    reads: tuple[str, ...]
    style: str
    path: str = ""


def block_picture(title: str, operators: Sequence[Operator]) -> str:
    """A layer, from what it reads to what reads it.

    Args:
        title: Which layer.
        operators: As `block_of` gives them.
    """
    by_name = {each.name: each for each in operators}
    edges = [(read, each.name) for each in operators for read in each.reads if read in by_name]
    layout = place(by_name, edges, None, WIDTH, 12.0, GAP)
    spans: dict[Node, tuple[float, float]] = {}
    boxes: list[str] = []
    y = MARGIN
    for row in layout.rows:
        height = max(_height(by_name[node]) for node in row if not isinstance(node, Bend))
        for node in row:
            own = height if isinstance(node, Bend) else _height(by_name[node])
            spans[node] = y + (height - own) / 2, y + (height + own) / 2
            if not isinstance(node, Bend):
                left = MARGIN + layout.middles[node] - WIDTH / 2
                boxes += _box(by_name[node], Box(left, spans[node][0], WIDTH, own))
        y += height + STEP
    arrows = [arrow([(MARGIN + layout.middles[node], *spans[node]) for node in nodes]) for nodes in layout.arrows]
    said = "; ".join(_said(each, by_name) for each in operators)
    width = layout.width + 2 * MARGIN
    return picture(width, y - STEP + MARGIN, title, said, [*arrows, *boxes], least=min(width, max(340, 0.75 * width)))


def _height(operator: Operator) -> float:
    return 2 * PAD + HEAD + LINE * len(operator.lines)


def _box(operator: Operator, box: Box) -> Iterator[str]:
    decides = operator.style == DECIDES
    style = operator.style if operator.style in (DECIDES, ENDS) else f"graph s-{operator.style}"
    yield hexagon(box, style) if decides else rectangle(box, style)
    room = box.width - 2 * (16 if decides else PAD)
    y = box.y + PAD + 12
    yield text(box.middle, y, shortened(operator.title, 12.5, room), "title", anchor="middle", size=12.5)
    for index, each in enumerate(operator.lines, 1):
        yield text(box.middle, y + index * LINE + 2, shortened(each, 11, room), "quiet", anchor="middle", size=11)


def _said(operator: Operator, by_name: dict[str, Operator]) -> str:
    reads = " and ".join(by_name[name].title for name in operator.reads if name in by_name)
    about = f" ({', '.join(operator.lines)})" if operator.lines else ""
    return f"{operator.title}{about}" + (f" reads {reads}" if reads else "")
