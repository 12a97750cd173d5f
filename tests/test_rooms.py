"""The rooms: no circle, no import of a floor above, and a picture that is current."""

from __future__ import annotations

import networkx as nx
import pytest

from tests.picture import draw
from tests.rooms import FLOORS, MUTUAL, PICTURE, House, Room, house


def circles(graph: nx.DiGraph[str]) -> list[list[str]]:
    return [sorted(each) for each in nx.strongly_connected_components(graph) if len(each) > 1]


def test_no_rooms_import_each_other() -> None:
    assert circles(nx.DiGraph(house().imports - MUTUAL)) == []


def test_floors_know_only_what_is_below_them() -> None:
    read = house()
    upwards = [(a, b) for a, b in read.imports if FLOORS.index(read.rooms[a].floor) > FLOORS.index(read.rooms[b].floor)]
    assert upwards == []


def test_the_picture_is_current() -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw(house()), "python -m tests.rooms draws it anew"


def test_a_picture_shows_rooms_and_the_arrows_that_others_do_not_imply() -> None:
    """A negative control: what the picture is drawn from."""
    rooms = {name: Room(f"adaptc.{name}", "adaptc", f"Idea of {name}") for name in ("a", "b", "c")}
    pairs = {("adaptc.a", "adaptc.b"), ("adaptc.b", "adaptc.c"), ("adaptc.a", "adaptc.c")}
    small = House({room.name: room for room in rooms.values()}, frozenset(pairs))
    assert set(small.floor("adaptc").edges) == {("adaptc.a", "adaptc.b"), ("adaptc.b", "adaptc.c")}
    with pytest.raises(AssertionError, match="import each other"):
        House(small.rooms, frozenset({*pairs, ("adaptc.c", "adaptc.a")})).floor("adaptc")
