"""branch: the same numbers as both computed, and none of a skipped block's work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.passes import Pipeline
from adaptc.passes.quantize.float_weights import FloatWeights
from adaptc.passes.quantize.quantize import Quantize
from adaptc.passes.skip_ffn.branch import Branch
from adaptc.passes.skip_ffn.skips import run_always, skips
from adaptc.runtime.bundle.plan import Switch
from tests import touched
from tests.close import ENGINE, assert_close
from tests.models import skipping, tiny

RUN, SKIP = np.float32(-np.inf), np.float32(np.inf)
Floats = npt.NDArray[np.float32]


class Runs(Protocol):
    """A graph of a decoder that can be run."""

    @property
    def model(self) -> ir.Model: ...

    def run(self, feeds: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]: ...


def step(
    graph: Runs,
    ids: npt.NDArray[np.int64],
    threshold: Floats,
    past: dict[str, Floats] | None = None,
    before: int = 0,
) -> tuple[Floats, npt.NDArray[np.bool_], dict[str, Floats]]:
    """One step: logits, what ran, and the cache after it."""
    outputs = graph.run(feeds(graph, ids, threshold, past, before))
    cache = {n.replace("present", "past"): v.astype(np.float32) for n, v in outputs.items() if n.startswith("present.")}
    return outputs["logits"].astype(np.float32), outputs["ran"].astype(np.bool_), cache


def feeds(
    graph: Runs, ids: npt.NDArray[np.int64], threshold: Floats, past: dict[str, Floats] | None, before: int
) -> dict[str, npt.NDArray[np.generic]]:
    batch, tokens = ids.shape
    return {
        "input_ids": ids,
        "seqlens_k": np.full(batch, before + tokens - 1, np.int32),
        "total_sequence_length": np.array(before + tokens, np.int32),
        "logits_from": np.array([0]),
        "threshold": threshold,
        **(past or tiny.empty_cache(OnnxGraph(graph.model), batch)),
    }


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("branch/llama", str(skipping.branched("llama")))


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral-window", "gemma2", "gemma3"])
def test_equals_eager(family: str) -> None:
    """A dense prompt, then tokens one by one under a threshold that some gates pass, against the FX graph."""
    low_rank = family in ("llama", "gemma2")
    graph = skipping.onnx(skipping.branched(family, low_rank=low_rank))
    ids = tiny.feeds(1, 14, seed=5)["input_ids"]
    threshold = np.full((1, 14), RUN)
    threshold[0, 6:] = np.linspace(-1.5, 1.5, 8)
    expected = skipping.oracle(family, ids, threshold, low_rank=low_rank)
    logits, ran, past = step(graph, ids[:, :6], threshold[:, :6])
    assert ran.all()
    assert_close(logits, expected[:, :6], **ENGINE)
    seen = []
    for at in range(6, 14):
        now = slice(at, at + 1)
        logits, ran, past = step(graph, ids[:, now], threshold[:, now], past, at)
        assert_close(logits, expected[:, now], **ENGINE)
        seen.append(ran)
    assert 0 < np.mean(seen) < 1, "some blocks ran and some did not"


def test_a_negative_control_sees_a_wrong_choice() -> None:
    ids = tiny.feeds(1, 5)["input_ids"]
    everything, nothing = (skipping.oracle("llama", ids, np.full((1, 5), t)) for t in (RUN, SKIP))
    assert np.abs(everything - nothing).max() > 0.1


def test_several_rows_run_a_block_that_one_of_them_wants() -> None:
    graph = skipping.onnx(skipping.branched("llama"))
    ids = tiny.feeds(3, 1)["input_ids"]
    for wants, expected in (([SKIP] * 3, False), ([SKIP, RUN, SKIP], True)):
        logits, ran, _ = step(graph, ids, np.array(wants)[:, None])
        assert (ran == expected).all()
        whole = np.full((3, 1), RUN if expected else SKIP)
        assert_close(logits, skipping.oracle("llama", ids, whole), **ENGINE)


@pytest.mark.parametrize("low_rank", [False, True])
def test_a_skipped_block_runs_nothing_of_it(low_rank: bool, tmp_path: Path) -> None:
    """By the engine's own profile: the feed-forward's multiplications that a decode step executed."""
    program = Pipeline((Quantize(block_size=16), Branch())).run(skipping.lowered("llama", low_rank=low_rank))
    whole = {f"model.layers.{i}.mlp.{part}" for i in range(3) for part in ("gate_up_proj", "down_proj")}
    ungated = {name for name in whole if not any(f"layers.{i}." in name for i in skipping.GATED)}
    assert executed(skipping.onnx(program), RUN, tmp_path) == whole
    assert executed(skipping.onnx(program), SKIP, tmp_path) == ungated


def executed(graph: OnnxGraph, threshold: np.float32, folder: Path) -> set[str]:
    """Modules of the feed-forwards' MatMulNBits nodes that ran in one decode step."""
    content = ir.to_proto(ir.external_data.load_to_model(graph.model.clone())).SerializeToString()
    session = touched.profiled(content, folder / "profile")
    session.run(None, feeds(graph, np.array([[5]]), np.array([[threshold]]), None, 0))
    ran = {name.removesuffix("_kernel_time") for name in touched.executed(session) if name.endswith("_kernel_time")}
    assert any("lm_head" in name for name in ran)
    return {name.rpartition("/")[0] for name in ran if ".mlp." in name and "MatMulNBits" in name}


def test_input_is_untouched_and_weights_are_shared() -> None:
    program = skipping.lowered("qwen2")
    before = str(program)
    after = Branch().apply(program)
    assert after is not program
    assert str(program) == before
    old, new = (skipping.onnx(p).model.graph.initializers for p in (program, after))
    assert set(old) == set(new)
    assert all(new[name].const_value is value.const_value for name, value in old.items())


def test_no_match_returns_the_same_program() -> None:
    for program in (tiny.cached("llama"), skipping.branched("llama")):
        assert Branch().apply(program) is program


def test_gates_of_another_form_are_compared_as_they_are() -> None:
    """A bias that is not a constant: nothing is folded, and the numbers are the same."""
    plain, moved = (skipping.onnx(skipping.lowered("llama")).fork() for _ in range(2))
    bias = "model.layers.1.skip.gate.bias"
    double = ir.node("Add", [moved.model.graph.initializers[bias]] * 2, name="double")
    double.outputs[0].name = "double"
    add = next(n for n in moved.model.graph if bias in {v.name for v in n.inputs if v is not None})
    moved.model.graph.insert_before(add, double)
    add.replace_input_with(1, double.outputs[0])
    program = skipping.lowered("llama")
    ids = tiny.feeds(1, 1)["input_ids"]
    for graph, folded in ((plain, True), (moved, False)):
        after = skipping.onnx(Branch().apply(program.with_graph("lm", graph)))
        assert any(n.name == "threshold/Split" for n in after.model.graph) == folded
        logits, ran, _ = step(after, ids, np.array([[RUN]]))
        assert ran.all()
        assert_close(logits, skipping.oracle("llama", ids, np.array([[RUN]])), **ENGINE)


def test_another_choice_is_left_alone() -> None:
    """A Where over a comparison with the input `threshold`, which no gate made."""
    program = skipping.lowered("llama")
    graph = run_always(skipping.onnx(program), range(len(skipping.GATED)))
    main = graph.model.graph
    threshold = ir.Value(name="threshold", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", "tokens"]))
    main.inputs.append(threshold)
    runs = ir.node("GreaterOrEqual", [threshold, threshold], name="runs")
    chosen = ir.node("Where", [runs.outputs[0], threshold, threshold], name="chosen")
    for node, dtype in ((runs, ir.DataType.BOOL), (chosen, ir.DataType.FLOAT)):
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = (
            node.name,
            ir.TensorType(dtype),
            threshold.shape,
        )
    main.extend([runs, chosen])
    main.outputs.append(chosen.outputs[0])
    other = program.with_graph("lm", graph)
    other.verify()
    assert Branch().apply(other) is other


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_a_dense_twin_reads_no_threshold(family: str) -> None:
    """Qwen3 and Gemma 3 norm each head, so sizes of a step stay in the graph: they must not be read off thresholds."""
    graph = run_always(skipping.onnx(skipping.lowered(family)), range(len(skipping.GATED)))
    assert "threshold" not in {value.name for value in graph.model.graph.inputs}


def test_the_dense_twin_stands_beside_the_gated_graph() -> None:
    program = skipping.branched("llama")
    dense = program.graph("lm.dense", OnnxGraph)
    assert "threshold" not in {value.name for value in dense.model.graph.inputs}
    assert not any(node.op_type == "If" for node in dense.model.graph)
    ids = tiny.feeds(2, 5)["input_ids"]
    assert_close(tiny.step(dense, ids)[0], tiny.eager("llama", tiny.feeds(2, 5)), **ENGINE)


def test_a_program_with_routes_has_dense_twins_too() -> None:
    """A tail with gates has one; tests/end_to_end/test_stitched_gates.py runs them."""
    lowered = skipping.lowered("llama")
    routed = replace(lowered, plan=(*lowered.plan, Switch("route", {"own": "lm"})))
    assert set(Branch().apply(routed).graphs) == {"lm", "lm.dense"}


def test_nodes_of_one_name_can_stand_in_one_branch() -> None:
    """float_weights names both of a cheap path's products alike, which ONNX Runtime refuses in a branch only."""
    program = Pipeline((FloatWeights(), Branch())).run(skipping.lowered("qwen2", low_rank=True))
    ids = tiny.feeds(1, 3)["input_ids"]
    threshold = np.full((1, 3), SKIP)
    logits, _, _ = step(skipping.onnx(program), ids, threshold)
    assert_close(logits, skipping.oracle("qwen2", ids, threshold, low_rank=True), **ENGINE)


def test_what_others_read_stays_outside_the_branch() -> None:
    """A block's result that is also an output of the graph is computed whether it is taken or not."""
    graph = skipping.onnx(skipping.lowered("llama")).fork()
    full = skips(graph.model.graph)[0].full
    graph.model.graph.outputs.append(full)
    after = Pipeline((Branch(),)).run(skipping.lowered("llama").with_graph("lm", graph))
    ids = tiny.feeds(1, 1)["input_ids"]
    logits, ran, _ = step(skipping.onnx(after), ids, np.array([[SKIP]]))
    assert not ran.any()
    assert_close(logits, skipping.oracle("llama", ids, np.array([[SKIP]])), **ENGINE)
