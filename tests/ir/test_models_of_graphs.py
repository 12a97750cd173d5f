"""Which model a graph, or a weight of a joined graph, belongs to: said by fields, not read off the graph's name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adaptc.ir.program import Backbone, Program
from adaptc.ir.weight_names import named_after, owner_of
from adaptc.runtime.bundle.skip_gates import SkipGates


def backbone(name: str) -> Backbone:
    return Backbone(name, "llama", 300, 0, (1,), None, 64)


def test_a_graph_says_its_model_whatever_it_is_called() -> None:
    parts = {"large": backbone("a"), "trunk": backbone("b")}
    program = Program({}, (), parts, model_of={"trunk": "large", "x.encode.image": "trunk"})
    assert program.backbone("large") == parts["large"]
    assert program.backbone("trunk") == parts["large"]
    assert program.backbone("x.encode.image") == parts["trunk"]
    with pytest.raises(KeyError):
        program.backbone("large.encode.image")


def test_a_dense_twin_has_its_gated_graphs_model() -> None:
    gates = SkipGates("static", (1,), 3, 0, "any", (), dense="twin")
    program = Program({}, (), {"lm": backbone("a")}, gates={"graph": gates}, model_of={"graph": "lm"})
    assert program.model("twin") == program.model("graph") == "lm"
    assert replace(program, gates={}).model("twin") == "twin"


def test_a_weight_of_a_joined_graph_says_its_model() -> None:
    models = ("large", "large2")
    for model in models:
        assert owner_of(named_after(model, "model.norm.weight"), models) == model
    assert owner_of("stitch.large.a", models) == owner_of("large", models) == ""
