"""A curve with axes, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adaptc.report.drawing.shapes import line, picture, text

WIDTH, HEIGHT = 520.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 16.0, 30.0, 46.0
"""Space around the curves, in pixels."""

COLOURS = 6
"""Classes c0, c1, … of the page's style, in the order of curves; the page has their legend."""


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis.

    Attributes:
        name: What it shows, with its unit.
        low: Value at its beginning.
        high: Value at its end.
        marks: Values that are written at it.
    """

    name: str
    low: float
    high: float
    marks: tuple[float, ...]

    @classmethod
    def over(cls, name: str, values: Sequence[float], *, low: float | None = None) -> Axis:
        """An axis over values, from and to round numbers; from `low` if it is given."""
        least, most = (min(values) if low is None else low), max(values)
        step = _round_step((most - least) / 5 or abs(most) / 5 or 1.0)
        first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
        last = max(last, first + 1)
        marks = tuple(round(n * step, 10) for n in range(first, last + 1))
        return cls(name, marks[0], marks[-1], marks)

    def part(self, value: float) -> float:
        """Where a value is: 0 at the beginning, 1 at the end."""
        return (value - self.low) / (self.high - self.low)


def _round_step(step: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(step))
    return next(power * each for each in (1, 2, 5, 10) if power * each >= step * 0.999)


def curves(title: str, x: Axis, y: Axis, by_name: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Curves through points; those above the y axis are left out.

    Args:
        title: What is shown.
        x: The lower axis.
        y: The left axis.
        by_name: (x, y) of each curve, x rising.
    """

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return (
            LEFT + x.part(point[0]) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - y.part(point[1]) * (HEIGHT - TOP - BOTTOM),
        )

    parts = []
    for mark in y.marks:
        (_, py), end = at((x.low, mark)), WIDTH - RIGHT
        parts += [line([(LEFT, py), (end, py)], "grid"), text(LEFT - 7, py + 4, f"{mark:g}", "quiet", anchor="end")]
    for mark in x.marks:
        px, _ = at((mark, y.low))
        parts.append(text(px, HEIGHT - BOTTOM + 18, f"{mark:g}", "quiet", anchor="middle"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x.name, "quiet", anchor="middle"))
    parts.append(text(4, 14, y.name, "quiet"))
    for index, points in reversed(list(enumerate(by_name.values()))):
        kept = [at(point) for point in points if point[1] <= y.high]
        style = f"c{index % COLOURS}"
        parts.append(line(kept, f"curve {style}"))
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.2" class="dot {style}"/>' for a, b in kept]
    said = "; ".join(f"{name}: " + ", ".join(f"{a:g}: {b:g}" for a, b in points) for name, points in by_name.items())
    return picture(WIDTH, HEIGHT, title, f"{y.name} over {x.name}. {said}", parts, least=340)
