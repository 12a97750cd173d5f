"""Rooms of the house and who imports whom, read from the code: `python -m tests.rooms` draws docs/architecture.svg."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import networkx as nx

from tests.repo import PACKAGES, ROOT, all_modules, imports

PICTURE = ROOT / "docs/architecture.svg"

FLOORS = ("adaptc", "adaptc.passes", "adaptc.ir", "adaptc.runtime")
"""The layers, from the one that knows the most to the one that knows nothing of the others."""

EVERYWHERE = {"adaptc", "adaptc.__main__", "adaptc.errors", "adaptc.runtime.errors"}
"""Modules that are left out of the picture: the entry, and the errors that all raise."""


@dataclass(frozen=True, slots=True)
class Room:
    """A folder of one idea, or a module that stands beside such folders.

    Attributes:
        name: As it is imported.
        floor: One of `FLOORS`.
        idea: The first sentence of its docstring.
    """

    name: str
    floor: str
    idea: str

    @property
    def label(self) -> str:
        """Its folder or file, as its floor's folder has it; the name of a floor that is one room."""
        if self.name == "adaptc.ir":
            return "ir"
        if self.name == self.floor:
            return "__init__.py"
        inside = self.name.removeprefix(f"{self.floor}.")
        return inside if self.name in PACKAGES else f"{inside}.py"


@dataclass(frozen=True, slots=True)
class House:
    """The rooms, and the imports between them.

    Attributes:
        rooms: By name.
        imports: Pairs (room, room that it imports), of one floor or of two.
    """

    rooms: Mapping[str, Room]
    imports: frozenset[tuple[str, str]]

    def floor(self, name: str) -> nx.DiGraph[str]:
        """The rooms of a floor, with the imports that are not implied by others."""
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from(room.name for room in self.rooms.values() if room.floor == name)
        graph.add_edges_from(pair for pair in self.imports if all(each in graph for each in pair))
        circles = [sorted(each) for each in nx.strongly_connected_components(graph) if len(each) > 1]
        assert not circles, f"rooms that import each other: {circles}"
        return nx.transitive_reduction(graph)

    def between_floors(self) -> set[tuple[str, str]]:
        """Pairs of floors of which the first imports the second."""
        pairs = {(self.rooms[a].floor, self.rooms[b].floor) for a, b in self.imports}
        return {(a, b) for a, b in pairs if a != b}


def house() -> House:
    """Read the house from the code; imports for the type checker count, and so do those in functions."""
    modules = all_modules()
    rooms = {}
    for module, file in modules.items():
        if (name := room_of(module)) is not None:
            source = (PACKAGES[name] / "__init__.py") if name in PACKAGES else file
            rooms[name] = Room(name, floor_of(name), sentence(source.read_text(encoding="utf-8")))
    pairs = set()
    for module, file in modules.items():
        for imported in imports(file):
            target = known(imported.name, modules)
            pair = room_of(module), room_of(target) if target is not None else None
            if None not in pair and pair[0] != pair[1]:
                pairs.add(pair)
    return House(rooms, frozenset((a, b) for a, b in pairs if a is not None and b is not None))


def floor_of(module: str) -> str:
    """The floor a module is on: the longest of `FLOORS` that it is in."""
    return max((floor for floor in FLOORS if f"{module}.".startswith(f"{floor}.")), key=len)


def room_of(module: str) -> str | None:
    """The room a module is in; None for one of `EVERYWHERE`."""
    if module in EVERYWHERE:
        return None
    floor = floor_of(module)
    if floor == "adaptc.ir":
        return floor
    inside = module.removeprefix(floor).strip(".").split(".")
    return f"{floor}.{inside[0]}".rstrip(".")


def known(name: str, modules: Iterable[str]) -> str | None:
    """The module of ours that an imported name is, or is in."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def sentence(code: str) -> str:
    """The first sentence of a module's docstring."""
    text = " ".join((ast.get_docstring(ast.parse(code)) or "").split("\n\n")[0].split())
    return text.split(". ")[0].rstrip(".").replace("`", "")


def main() -> None:
    """Draw the picture anew."""
    from tests.picture import draw

    PICTURE.write_text(draw(house()), encoding="utf-8")


if __name__ == "__main__":
    main()
