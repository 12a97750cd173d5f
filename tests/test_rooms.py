"""The rooms and their imports, as the picture of docs/architecture.md shows them."""

from __future__ import annotations

import pytest

from tests.rooms import House, Room


def test_a_picture_shows_rooms_and_the_arrows_that_others_do_not_imply() -> None:
    """A negative control: what the picture is drawn from."""
    rooms = {name: Room(f"adaptc.{name}", "adaptc", f"Idea of {name}") for name in ("a", "b", "c")}
    pairs = {("adaptc.a", "adaptc.b"), ("adaptc.b", "adaptc.c"), ("adaptc.a", "adaptc.c")}
    small = House({room.name: room for room in rooms.values()}, frozenset(pairs))
    assert set(small.floor("adaptc").edges) == {("adaptc.a", "adaptc.b"), ("adaptc.b", "adaptc.c")}
    with pytest.raises(AssertionError, match="import each other"):
        House(small.rooms, frozenset({*pairs, ("adaptc.c", "adaptc.a")})).floor("adaptc")
