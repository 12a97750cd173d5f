"""The codec of dataclasses: what is written reads back, and what is wrong is refused with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptc.runtime import BundleError
from adaptc.runtime.bundle.strict_json import ExtendedFloat, dumps, loads, read_json, to_json


@dataclass(frozen=True)
class Point:
    x: float
    label: str | None = None


@dataclass(frozen=True)
class Circle:
    radius: int


@dataclass(frozen=True)
class Drawing:
    shapes: tuple[Point | Circle, ...]
    pair: tuple[int, float]
    levels: tuple[tuple[float, ExtendedFloat], ...]
    named: Mapping[str, Point]
    size: tuple[int | str, ...] = ()
    visible: bool = True
    extra: dict[str, Any] = field(default_factory=dict)


DRAWING = Drawing(
    (Point(1.5), Circle(2), Point(0.0, "é")),
    (1, 2.5),
    ((0.0, -math.inf), (0.5, -1.0), (1.0, math.inf)),
    {"origin": Point(0.0)},
    (3, "batch"),
    False,
    {"any": [1, None, {"deep": 0.5}]},
)


def test_what_is_written_is_read() -> None:
    assert loads(Drawing, dumps(DRAWING)) == DRAWING
    assert dumps(DRAWING, indent=1).count("\n") > 20
    assert json.loads(dumps(DRAWING))["levels"] == [[0.0, None], [0.5, -1.0], [1.0, "inf"]]


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.builds(Point, finite, st.none() | st.text()), st.lists(st.tuples(finite, st.floats(allow_nan=False))))
def test_every_value_survives(point: Point, levels: list[tuple[float, float]]) -> None:
    drawing = Drawing((point,), (0, point.x), tuple(levels), {point.label or "": point})
    assert loads(Drawing, dumps(drawing)) == drawing


@pytest.mark.parametrize(
    ("drawing", "message"),
    [
        (Drawing((Point(math.nan),), (1, 1), (), {}), r"^shapes\[0\]\.x: NaN; a number is needed$"),
        (Drawing((Point(math.inf),), (1, 1), (), {}), r"^shapes\[0\]\.x: Infinity; a number is needed$"),
        (Drawing((), (1, 1), ((0.0, math.nan),), {}), r"^levels\[0\]\[1\]: NaN; a number is needed$"),
        (Drawing((), (True, 1), (), {}), r"^pair\[0\]: true; a whole number is needed$"),
        (Drawing((), (1, 2, 3), (), {}), "^pair: .*; a list of 2 is needed$"),  # type: ignore[arg-type]
        (Drawing((), (1, 1), (), {1: Point(1)}), "^named: key 1; a string is needed$"),  # type: ignore[dict-item]
        (
            Drawing((), (1, 1), (), {}, extra={"a": [{1, 2}]}),
            r"^extra\.a\[0\]: .*; plain, finite JSON values are needed",
        ),
        (Drawing((), (1, 1), (), {}, extra={"a": math.nan}), "^extra.a: NaN; plain, finite JSON values are"),
    ],
)
def test_what_could_not_be_read_is_not_written(drawing: Drawing, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        to_json(drawing)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": [[0.0, "-inf"]]}, r'^levels\[0\]\[1\]: "-inf"; a number is needed$'),
        ({"levels": [[None, 0.0]]}, r"^levels\[0\]\[0\]: null; a number is needed$"),
        ({"shapes": [{"side": 1}]}, r"^shapes\[0\]\.x: missing$"),
        ({"shapes": [{"radius": 1, "x": 1}]}, r"^shapes\[0\]\.label: missing$"),
        ({"visible": 1}, "^visible: 1; true or false is needed$"),
        ({"named": []}, r"^named: \[\]; an object is needed$"),
        ({"more": 1}, "^more: unknown key; there are: shapes, pair"),
    ],
)
def test_reading_is_strict(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        read_json(Drawing, to_json(DRAWING) | change)


def test_defaults_stand_in_for_missing_keys_where_that_is_asked_for() -> None:
    assert loads(Point, '{"x": 1}', defaults=True) == Point(1)
    with pytest.raises(BundleError, match=r"^label: missing$"):
        loads(Point, '{"x": 1}')
    with pytest.raises(BundleError, match=r"^x: missing$"):
        loads(Point, "{}", defaults=True)


@pytest.mark.parametrize("text", ["", "[", "NaN", '{"x": -Infinity}', "[" * 100_000, b"\xff"])
def test_what_is_not_json(text: str | bytes) -> None:
    with pytest.raises(BundleError, match=r"^not JSON: "):
        loads(Point, text)
