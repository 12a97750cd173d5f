from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from adaptc.graph import FxGraph, OnnxGraph
from adaptc.passes import Pipeline, gating
from adaptc.passes.split_regions import SplitRegions
from adaptc.regions import Split, run_split
from tests import tiny, trt_bundle
from tests.passes.test_legalize import drive


@pytest.mark.parametrize(("family", "low_rank"), [("llama", True), ("qwen2", False), ("gemma2", True)])
@pytest.mark.parametrize("threshold", [-np.inf, 0.0, np.inf])
def test_pieces_in_a_row_are_the_whole(family: str, low_rank: bool, threshold: float) -> None:
    made = trt_bundle.program(family, gated=True, low_rank=low_rank)
    graph, split = made.graph("lm", OnnxGraph), trt_bundle.split_of(made)
    ids = tiny.feeds(batch=1, tokens=11)["input_ids"]
    ran: list[bool] = []

    def pieces(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = run_split(split, feeds)
        ran.extend(bool(found[f"ran.{gate}"]) for gate in range(2))
        return found

    np.testing.assert_array_equal(drive(graph, pieces, ids, threshold), drive(graph, graph.run, ids, threshold))
    decided = ran[2:]  # after the prompt
    mixed = len(set(decided)) == 2 or family == "qwen2"  # whose two gates are of one mind here
    assert {-np.inf: all(decided), np.inf: not any(decided), 0.0: mixed}[threshold]


def test_a_model_without_gates_is_a_body_and_a_head() -> None:
    split = trt_bundle.split_of(trt_bundle.program("llama"))
    assert [step.call.graph for step in split.steps if step.call is not None] == ["region", "head"]
    assert [v.name for v in split.graphs["head"].model.graph.outputs] == ["out0"]


def everywhere(graph: FxGraph) -> Split:
    return trt_bundle.split_of(trt_bundle.program_of(gating.static(graph, {0: 1.0, 1: 2.0, 2: 3.0}, {})))


def test_regions_that_differ_in_weights_only_are_one_graph() -> None:
    split = everywhere(tiny.fx("llama"))
    calls = Counter(call.graph for step in split.steps for call in step.calls())
    assert calls == {"region": 1, "block": 3, "region_2": 2, "region_3": 1, "head": 1}
    blocks = [step.when.then for step in split.steps if step.when is not None]
    assert len({call.reads for call in blocks}) == 3
    assert all(not graph.model.graph.initializers for graph in split.graphs.values())


def test_products_of_a_block_are_in_its_graph_alone() -> None:
    split = everywhere(tiny.fx("llama"))

    def products(name: str) -> int:
        return sum(node.op_type == "Gemm" for node in split.graphs[name].model.graph)

    assert {name: products(name) for name in split.graphs if name != "whole"} == {
        "region": 2,  # attention's two
        "block": 2,
        "region_2": 2,
        "region_3": 0,
        "head": 1,
    }
    assert products("whole") == 13


def test_nothing_instead_of_a_block_is_no_graph() -> None:
    split = everywhere(tiny.fx("llama"))
    assert [step.when.otherwise for step in split.steps if step.when is not None] == [None] * 3


def test_a_gate_that_looks_at_other_gates_keeps_its_logits() -> None:
    graph = gating.cosine(tiny.fx("llama"), (0, 1, 2), 0.5, 1)
    made = trt_bundle.program_of(graph)
    whole, split = made.graph("lm", OnnxGraph), trt_bundle.split_of(made)
    ids = tiny.feeds(batch=1, tokens=11)["input_ids"]
    pieces = drive(whole, lambda feeds: run_split(split, feeds), ids, -0.5)
    np.testing.assert_array_equal(pieces, drive(whole, whole.run, ids, -0.5))


def test_input_is_untouched_and_a_second_time_changes_nothing() -> None:
    made = trt_bundle.program("llama")
    text = made.graph("lm", OnnxGraph).text()
    assert Pipeline((SplitRegions(),)).run(made) is made
    assert made.graph("lm", OnnxGraph).text() == text


def test_nothing_for_tensorrt_returns_the_same_program() -> None:
    lowered = tiny.lowered("llama")
    assert SplitRegions().apply(lowered) is lowered
