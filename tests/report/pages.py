"""A page, read as a browser reads it: its elements, and where the text of its pictures stands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import combinations

from adaptc.report.drawing.shapes import Box, text_width

VOID = {"meta", "br", "hr", "img", "link", "input", "rect", "polygon", "polyline", "path", "circle"}


@dataclass
class Element:
    """An element with its attributes and what is in it."""

    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    def all(self, tag: str) -> list[Element]:
        """Every element of a tag in it."""
        inside = [each for each in self.children if isinstance(each, Element)]
        return [found for each in inside for found in ([each] if each.tag == tag else []) + each.all(tag)]

    @property
    def text(self) -> str:
        """Its text."""
        return "".join(each if isinstance(each, str) else each.text for each in self.children)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {key: value or "" for key, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID, tag
        self.open[-1].children.append(Element(tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> in <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(page: str) -> Element:
    """Read a page; every element must be closed where it was opened."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == [reader.root]
    return reader.root


def check_page(page: str) -> Element:
    """Read a page and check that it needs nothing else and that every figure says in words what it shows."""
    root = read(page)
    assert not re.search(r"https?:|url\(|@import|<script|<link|\bsrc=|javascript:", page)
    assert root.all("html")[0].attributes["lang"] == "en"
    assert len(root.all("h1")) == len(root.all("title")) - len(root.all("svg")) == 1
    for svg in root.all("svg"):
        assert svg.attributes["role"] == "img"
        assert svg.all("title")[0].text
        assert len(svg.all("desc")[0].text) > 20
        check_picture(svg)
    for figure in root.all("figure"):
        assert figure.all("svg") or figure.all("table")
    for table in root.all("table"):
        assert len({_columns(row) for row in table.all("tr")}) == 1
    return root


def _columns(row: Element) -> int:
    cells = [each for each in row.children if isinstance(each, Element) and each.tag in ("td", "th")]
    return sum(int(cell.attributes.get("colspan", 1)) for cell in cells)


def check_picture(svg: Element) -> None:
    """Check that text stands within the picture, and that no two lines of text and no two boxes overlap."""
    width, height = (float(each) for each in svg.attributes["viewbox"].split()[2:])
    lines = [(text.text, _line(text)) for text in svg.all("text")]
    for said, box in lines:
        assert box.x >= -1, said
        assert box.x + box.width <= width + 1, said
        assert box.y >= 0, said
        assert box.bottom <= height + 1, said
    for (one, a), (other, b) in combinations(lines, 2):
        assert not _overlap(a, b), f"{one!r} over {other!r}"
    boxes = [Box(*(float(r.attributes[key]) for key in ("x", "y", "width", "height"))) for r in svg.all("rect")]
    boxes += [_hull(each.attributes["points"]) for each in svg.all("polygon")]
    for a, b in combinations(boxes, 2):
        assert not _overlap(a, b)


def _line(text: Element) -> Box:
    size = float(text.attributes["font-size"])
    width = text_width(text.text, size)
    left = {"middle": width / 2, "end": width}.get(text.attributes.get("text-anchor", ""), 0.0)
    return Box(float(text.attributes["x"]) - left, float(text.attributes["y"]) - 0.8 * size, width, size)


def _hull(points: str) -> Box:
    xs, ys = zip(*(map(float, point.split(",")) for point in points.split()), strict=True)
    return Box(min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))


def _overlap(a: Box, b: Box) -> bool:
    apart = a.x + a.width <= b.x or b.x + b.width <= a.x or a.bottom <= b.y or b.bottom <= a.y
    return not apart
