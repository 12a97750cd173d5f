"""The rooms: no circle of rooms or modules, no import in a function that hides one, and a picture that is current."""

from __future__ import annotations

import networkx as nx
import pytest

from tests.picture import draw
from tests.repo import all_modules, imports
from tests.rooms import FLOORS, PICTURE, House, Room, house, known

ALL = all_modules()

LATE: dict[str, str] = {
    "adaptc.__main__": "Ctrl-C may come while commands are imported, and ends them as quietly as later",
    "adaptc.bench.peer_loaders": "it is one of several engines, each imported in the process that measures it",
    "adaptc.checks.multimodal": "it loads torch, and callers work without it",
    "adaptc.checks.stitch": "it loads torch, and callers work without it",
    "adaptc.checks.unknown_family": "it loads torch, and callers work without it",
    "adaptc.compiler.driver": "it loads torch, and callers work without it",
    "adaptc.spec.passes": "it loads torch, and callers work without it",
    "adaptc.training.sampled_text": "it loads transformers, and only sampling needs it",
    "adaptc.verification.kinds.decisions": "it loads torch, and callers work without it",
    "adaptc.verification.rewritten": "it loads torch, and callers work without it",
    "adaptc.verification.rounded": "it loads torch, and callers work without it",
    "adaptc.verification.stored_weights": "it loads torch, and callers work without it",
    "adaptc.writing.run": "it loads torch or an engine, and one of the two is needed",
    "adaptc.ir.fx_graph": "it loads torch, and a graph is named without it",
    "adaptc.ir.onnx_graph": "it loads onnx, and a graph is held and changed without it",
    "adaptc.passes.drop_modality.drop_modality": "it loads torch, and callers work without it",
    "adaptc.passes.quantize.gptq": "it loads torch, and callers work without it",
    "adaptc.passes.skip_ffn.skip_ffn": "it loads torch, and callers work without it",
    "adaptc.runtime.text.templates": "it loads Jinja, and prompts that are no chats are read without it",
    "adaptc.runtime.backends.tensorrt.build": "it loads the CUDA driver, and engines of RTX are built without a GPU",
}
"""Modules that import modules of adaptc in functions, and why; commands do so too, so that the help is quick."""


def circles(graph: nx.DiGraph[str]) -> list[list[str]]:
    return [sorted(each) for each in nx.strongly_connected_components(graph) if len(each) > 1]


def test_no_modules_import_each_other() -> None:
    """Imports in functions count too: they are where circles hide."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    for module, file in ALL.items():
        for found in imports(file):
            target = known(found.name, ALL)
            if target is not None and not found.checked_only:
                graph.add_edge(module, target)
    assert circles(graph) == []


def test_imports_in_functions_have_a_reason() -> None:
    late = {
        module
        for module, file in ALL.items()
        for found in imports(file)
        if known(found.name, ALL) is not None and not found.at_once and not module.startswith("adaptc.cli")
    }
    assert late == set(LATE)


def test_no_rooms_import_each_other() -> None:
    assert circles(nx.DiGraph(house().imports)) == []


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
