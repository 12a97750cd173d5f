from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from adaptc.errors import PassError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.partitions import Split, run_split
from adaptc.passes import Pipeline
from adaptc.passes.skip_ffn import gating
from adaptc.passes.targets.partition import Partition, split
from tests.models import tiny, trt_bundle
from tests.models.drive import partitioned
from tests.models.trt_bundle import GATES

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


@pytest.mark.parametrize(("family", "low_rank"), [("llama", True), ("qwen2", False), ("gemma2", True)])
@pytest.mark.parametrize("threshold", [-np.inf, 0.0, np.inf])
def test_pieces_in_a_row_are_the_whole(family: str, low_rank: bool, threshold: float) -> None:
    made = trt_bundle.program(family, gated=True, low_rank=low_rank)
    graph, found = made.graph("lm", OnnxGraph), trt_bundle.split_of(made)
    ids = tiny.feeds(batch=1, tokens=11)["input_ids"]
    ran: list[bool] = []

    def pieces(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = run_split(found, feeds)
        ran.extend(bool(values[f"ran.{gate}"]) for gate in range(2))
        return values

    np.testing.assert_array_equal(
        partitioned(graph, pieces, ids, threshold), partitioned(graph, graph.run, ids, threshold)
    )
    decided = ran[2:]  # after the prompt
    mixed = len(set(decided)) == 2 or family != "gemma2"  # the others' gates are of one mind here
    assert {-np.inf: all(decided), np.inf: not any(decided), 0.0: mixed}[threshold]


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("partition/llama-gated", trt_bundle.split_of(trt_bundle.program("llama", gated=True)).text())


def test_a_model_without_gates_is_a_body_and_a_head() -> None:
    found = trt_bundle.split_of(trt_bundle.program("llama"))
    # Equal parts of the three layers are one graph; attention's GEMMs have the shapes of the block's here.
    layer = ["gemm", "partition_2", "gemm_2", "partition_3", "gemm", "partition_4", "gemm_2"]
    assert [[call.graph for call in step.then] for step in found.steps] == [
        ["partition", *layer, *(["partition_3", *layer] * 2), "partition_5"],
        ["head", "gemm_3"],
    ]
    assert [v.name for v in found.graphs["head"].model.graph.outputs] == ["out0"]


def everywhere(graph: FxGraph, *, gemms: bool = True) -> Split:
    made = trt_bundle.program_of(gating.static(graph, {0: 1.0, 1: 2.0, 2: 3.0}, {}))
    return split(made.graph("lm", OnnxGraph), gemms=gemms)


def test_partitions_that_differ_in_weights_only_are_one_graph() -> None:
    found = everywhere(tiny.fx("llama"))
    calls = Counter(call.graph for step in found.steps for call in step.calls())
    gemms = {"gemm": 6, "gemm_2": 6, "gemm_3": 1}  # two shapes, each in attention and in the block
    plain = {"partition": 1, "partition_2": 3, "partition_3": 5, "partition_4": 1, "block": 3, "head": 1}
    assert calls == gemms | plain
    assert found.gemms == set(gemms)
    blocks = [step.when.then for step in found.steps if step.when is not None]
    assert len({calls[0].reads for calls in blocks}) == 3
    assert all(not graph.model.graph.initializers for graph in found.graphs.values())


def test_a_gemm_is_rows_times_a_weight_and_no_more() -> None:
    found = everywhere(tiny.fx("llama"))
    for step in found.steps:
        for call in step.calls():
            graph = found.graphs[call.graph].model.graph
            if call.graph in found.gemms:
                x, weight = graph.inputs
                assert [x.dtype, weight.dtype, graph.outputs[0].dtype] == [HALF, HALF, FLOAT]
                assert call.reads[1] in found.weights
                assert len(weight.shape or ()) == 2
            assert sum(node.op_type == "Gemm" for node in graph) == int(call.graph in found.gemms)


def test_a_gated_block_is_its_two_gemms_and_what_is_between() -> None:
    found = everywhere(tiny.fx("llama"))
    blocks = [step.when.then for step in found.steps if step.when is not None]
    assert [[call.graph for call in calls] for calls in blocks] == [["gemm", "block", "gemm_2"]] * 3


def test_gemms_may_stay_where_they_are() -> None:
    graph = everywhere(tiny.fx("llama"), gemms=False)
    calls = [call.graph for step in graph.steps for call in step.calls()]
    assert calls == ["partition", "block", "partition_2", "block", "partition_2", "block", "partition_3", "head"]
    assert not graph.gemms


def test_nothing_instead_of_a_block_is_no_graph() -> None:
    found = everywhere(tiny.fx("llama"))
    assert [step.when.otherwise for step in found.steps if step.when is not None] == [()] * 3


def test_a_gate_that_looks_at_other_gates_keeps_its_logits() -> None:
    graph = gating.cosine(tiny.fx("llama"), (0, 1, 2), 0.5, 1)
    made = trt_bundle.program_of(graph)
    whole, found = made.graph("lm", OnnxGraph), trt_bundle.split_of(made)
    ids = tiny.feeds(batch=1, tokens=11)["input_ids"]
    pieces = partitioned(whole, lambda feeds: run_split(found, feeds), ids, -0.5)
    np.testing.assert_array_equal(pieces, partitioned(whole, whole.run, ids, -0.5))


def test_input_is_untouched_and_a_second_time_changes_nothing() -> None:
    made = trt_bundle.program("llama")
    text = made.graph("lm", OnnxGraph).text()
    assert Pipeline((Partition(),)).run(made) is made
    assert made.graph("lm", OnnxGraph).text() == text


def test_nothing_for_tensorrt_returns_the_same_program() -> None:
    lowered = tiny.lowered("llama")
    assert Partition().apply(lowered) is lowered


def test_rows_of_a_step_decide_together() -> None:
    whole = replace(trt_bundle.program("llama", gated=True), partitions={})
    for given, kept in (("auto", "any"), ("any", "any"), ("off", "off"), ("group", "group")):
        after = Partition().apply(replace(whole, gates={"lm": replace(GATES, batch=given)}))
        assert after.gates == {"lm": replace(GATES, batch=kept)}
    with pytest.raises(PassError, match=r"^batch: rows; TensorRT runs a block for all rows of a step"):
        Partition().apply(replace(whole, gates={"lm": replace(GATES, batch="rows")}))
