"""Pieces of SVG: shapes and text whose colours come from the page's style, for a light page and a dark one."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

NARROW, WIDE = frozenset("iljtfr.,:;'|!()[]{}/ ·"), frozenset("mwMW@%→")


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle, in pixels.

    Attributes:
        x: Left.
        y: Top.
        width: Width.
        height: Height.
    """

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        """The x of the middle."""
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        """The y of the lower edge."""
        return self.y + self.height


def text_width(text: str, size: float) -> float:
    """About how wide a text is in the page's font; rather too much than too little.

    Args:
        text: One line.
        size: Of the font, in pixels, as is the result.
    """
    return size * sum(0.36 if c in NARROW else 0.92 if c in WIDE else 0.7 if c.isupper() else 0.59 for c in text)


def shortened(text: str, size: float, width: float) -> str:
    """The text, or as much of its beginning as fits a width, with an ellipsis."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(f"{text}…", size) > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def text(x: float, y: float, content: str, style: str = "", *, anchor: str = "start", size: float = 12) -> str:
    """A line of text; `y` is its baseline, `style` names classes of the page's style."""
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" class="{style}"{where}>{html.escape(content)}</text>'


def rectangle(box: Box, style: str, *, radius: float = 6) -> str:
    """A rectangle with round corners."""
    return (
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="{radius:g}" '
        f'class="{style}"/>'
    )


def hexagon(box: Box, style: str) -> str:
    """What decides: a box with pointed sides."""
    x, y, right, low, cut = box.x, box.y, box.x + box.width, box.bottom, min(14.0, box.height / 2)
    points = [(x + cut, y), (right - cut, y), (right, (y + low) / 2), (right - cut, low), (x + cut, low)]
    points.append((x, (y + low) / 2))
    return f'<polygon points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}" class="{style}"/>'


def line(points: Iterable[tuple[float, float]], style: str) -> str:
    """A line through points."""
    return f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" class="{style}"/>'


def arrow(places: list[tuple[float, float, float]], style: str = "") -> str:
    """An arrow down through places (x, top, bottom): from the first one's bottom to the last one's top."""
    path = f"M{places[0][0]:.1f} {places[0][2]:.1f}"
    for (x0, _, y0), (x1, y1, _) in pairwise(places):
        middle = (y0 + y1) / 2
        path += f"L{x0:.1f} {y0:.1f}C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}"
    x, y, _ = places[-1]
    return f'<path d="{path}" class="edge {style}"/><path d="M{x:.1f} {y:.1f}l-4 -8h8z" class="tip {style}"/>'


def picture(width: float, height: float, title: str, description: str, parts: Iterable[str], *, least: float) -> str:
    """An SVG element with a text alternative.

    Args:
        width: Of the picture at its natural size, in pixels; a narrower page shrinks it.
        height: Its height.
        title: What it shows.
        description: What it says, for those who do not see it.
        parts: What is drawn, in order.
        least: Narrowest width that it shrinks to; a page that is narrower yet scrolls it.
    """
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="max-width: {width:.0f}px; min-width: {least:.0f}px" '
        f'role="img"><title>{html.escape(title)}</title><desc>{html.escape(description)}</desc>{"".join(parts)}</svg>'
    )
