"""Row compaction: each row of a step decides as it does alone, and says the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest

from adaptc.errors import PassError
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Program
from adaptc.passes import Pass, Pipeline
from adaptc.passes.decoder.fuse_norms import FuseNorms
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.decoder.kv_cache import KvCache
from adaptc.passes.decoder.logits_from import LogitsFrom
from adaptc.passes.lower.lower import Lower
from adaptc.passes.quantize.float_weights import FloatWeights
from adaptc.passes.quantize.quantize import Quantize
from adaptc.passes.skip_ffn import gating
from adaptc.passes.skip_ffn.branch import Branch
from adaptc.passes.skip_ffn.compaction import compacted
from adaptc.passes.skip_ffn.sides import sides
from adaptc.passes.skip_ffn.skips import grouped, run_always, skips
from tests.close import ENGINE, assert_close
from tests.models import gated_bundle, skipping, tiny
from tests.passes.skip_ffn.test_branch import RUN, SKIP, Floats, executed, feeds, step

WEIGHTS: dict[str, tuple[Pass, ...]] = {
    "fp32": (),
    "fp16": (FloatWeights(),),
    "int8": (Quantize("int8", block_size=16),),
    "int4": (Quantize(block_size=16),),
}
LEVELS = np.array([RUN, -0.4, 0.1, 0.6, SKIP], np.float32)
"""Thresholds of a step's rows: all blocks, some, none."""


def compact(program: Program, *, weights: str = "fp32") -> OnnxGraph:
    """The graph of a program before `branch`, whose rows decide for themselves."""
    gates = replace(gated_bundle.GATES, batch="rows")
    program = Pipeline((*WEIGHTS[weights], Branch())).run(replace(program, gates={"lm": gates}))
    assert program.gates["lm"] == replace(gates, dense="lm.dense")
    return skipping.onnx(program)


def of_policy(policy: str) -> Program:
    """A program with gates that decide otherwise, before `branch`."""
    whole = tiny.fx("llama")
    graph = (
        gating.static(whole, {1: -0.5, 2: 0.5}, {}) if policy == "static" else gating.cosine(whole, (0, 1, 2), 0.2, 1)
    )
    fusions = (FuseNorms(), FuseProjections())
    return Pipeline((Lower(), KvCache(max_tokens=64), LogitsFrom(), *fusions)).run(
        tiny.program("llama").with_graph("lm", graph)
    )


@dataclass(frozen=True)
class Loaded:
    """A graph as the engine optimizes it, loaded once for many steps.

    Attributes:
        model: The graph's.
        session: ONNX Runtime's.
    """

    model: ir.Model
    session: Any

    @classmethod
    def of(cls, graph: OnnxGraph) -> Loaded:
        whole = ir.external_data.load_to_model(graph.model.clone())
        return cls(graph.model, ort.InferenceSession(ir.to_proto(whole).SerializeToString()))

    def run(self, feeds: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        names = [each.name for each in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, dict(feeds)), strict=True))


def rows_alone(whole: OnnxGraph, levels: Floats) -> npt.NDArray[np.bool_]:
    """Prompts one by one, then steps of all rows together; each row's numbers and decisions are those it has alone.

    Returns:
        bool[steps, rows, gates]: what ran.
    """
    graph = Loaded.of(whole)
    count, prompt, steps = len(levels), 4, 4
    ids = tiny.feeds(count, prompt + steps, seed=7)["input_ids"]
    dense = np.full((1, prompt), RUN)
    pasts = [step(graph, ids[row : row + 1, :prompt], dense)[2] for row in range(count)]
    together = {name: np.concatenate([past[name] for past in pasts]) for name in pasts[0]}
    found = []
    for at in range(prompt, prompt + steps):
        now = slice(at, at + 1)
        logits, ran, together = step(graph, ids[:, now], levels[:, None], together, at)
        assert ran.shape == (count, len(sides(whole)))
        for row in range(count):
            one = slice(row, row + 1)
            alone, decided, pasts[row] = step(graph, ids[one, now], levels[one, None], pasts[row], at)
            assert decided.tolist() == ran[one].tolist()
            assert_close(logits[one], alone, **ENGINE)
        found.append(ran)
    return np.array(found)


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("branch/rows", compact(skipping.lowered("llama", low_rank=True)).text())
    golden("branch/rows-identity", compact(skipping.lowered("llama")).text())


@pytest.mark.parametrize("weights", list(WEIGHTS))
@pytest.mark.parametrize("low_rank", [False, True])
def test_each_row_is_as_it_is_alone(weights: str, low_rank: bool) -> None:
    ran = rows_alone(compact(skipping.lowered("llama", low_rank=low_rank), weights=weights), LEVELS)
    assert ran[:, 0].all()
    assert not ran[:, -1].any()
    assert 0 < ran[:, 1:-1].mean() < 1, "some blocks ran and some did not"


@pytest.mark.parametrize("policy", ["static", "cosine"])
def test_each_row_is_as_it_is_alone_under_other_policies(policy: str) -> None:
    levels = LEVELS if policy == "static" else np.array([RUN, -0.5, RUN, -0.5], np.float32)
    ran = rows_alone(compact(of_policy(policy)), levels)
    assert ran[:, 0].all()
    assert not ran.all()
    if policy == "static":
        assert ran[0].tolist() == [[True, True], [False, True], [False, True], [False, False], [False, False]]


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral-window", "gemma2", "gemma3"])
def test_equals_eager(family: str) -> None:
    """Rows of other thresholds against the FX graph, which computes both sides for each token."""
    low_rank = family in ("llama", "gemma2")
    graph = compact(skipping.lowered(family, low_rank=low_rank))
    ids = tiny.feeds(3, 7, seed=5)["input_ids"]
    threshold = np.full((3, 7), RUN)
    threshold[:, 6] = (RUN, 0.1, SKIP)
    expected = skipping.oracle(family, ids, threshold, low_rank=low_rank)
    logits, ran, past = step(graph, ids[:, :6], threshold[:, :6])
    assert ran.all()
    assert_close(logits, expected[:, :6], **ENGINE)
    logits, ran, past = step(graph, ids[:, 6:], threshold[:, 6:], past, 6)
    assert_close(logits, expected[:, 6:], **ENGINE)
    assert ran.tolist()[::2] == [[True, True], [False, False]]


def test_a_negative_control_sees_rows_that_changed_places() -> None:
    """Results that go to other rows than they came from are not close."""
    graph = compact(skipping.lowered("llama")).fork()
    first = next(node for node in graph.model.graph if node.op_type == "ScatterND")
    places = first.inputs[1]
    assert places is not None
    last = ir.node("Constant", [], {"value_ints": [-1]}, name="last")
    turned = ir.node("Sub", [last.outputs[0], places], name="turned")  # the same place, counted from the end
    graph.model.graph.insert_before(first, [last, turned])
    first.replace_input_with(1, turned.outputs[0])
    with pytest.raises(AssertionError):
        rows_alone(graph, LEVELS[:3])


def test_several_tokens_of_a_row_decide_together() -> None:
    graph = compact(skipping.lowered("llama"))
    ids = tiny.feeds(2, 3)["input_ids"]
    threshold = np.array([[SKIP, RUN, SKIP], [SKIP, SKIP, SKIP]])
    logits, ran, _ = step(graph, ids, threshold)
    assert ran.tolist() == [[True, True], [False, False]]
    for row, level in enumerate((RUN, SKIP)):
        one = slice(row, row + 1)
        assert_close(logits[one], skipping.oracle("llama", ids[one], np.full((1, 3), level)), **ENGINE)


@pytest.mark.parametrize("weights", ["int4", "int8"])
@pytest.mark.parametrize("low_rank", [False, True])
def test_no_rows_read_no_weight(weights: str, low_rank: bool) -> None:
    """A block's nodes run over no rows; what they give then has none either, and the cheap path's likewise."""
    graph = compact(skipping.lowered("llama", low_rank=low_rank), weights=weights)
    for level, gone in ((SKIP, "block"), (RUN, "stand_in")):
        names = [node.outputs[0].name for side in sides(graph) for node in getattr(side, gone) if _multiplies(node)]
        assert len(names) == (0 if gone == "stand_in" and not low_rank else 4)
        probed = graph.fork()
        by_name = {value.name: value for node in probed.model.graph for value in node.outputs}
        probed.model.graph.outputs.extend(by_name[name] for name in names)
        outputs = probed.run(feeds(graph, np.array([[5], [7]]), np.full((2, 1), level), None, 0))
        assert all(outputs[name or ""].shape[0] == 0 for name in names)


def _multiplies(node: ir.Node) -> bool:
    return node.op_type == "MatMulNBits"


def test_weights_are_in_one_node_each(tmp_path: Path) -> None:
    """So that an engine packs each once; and every block's products are nodes of the main graph."""
    program = Pipeline((Quantize(block_size=16),)).run(skipping.lowered("llama", low_rank=True))
    graph = compacted(skipping.onnx(program))
    readers = [name for node in graph.model.graph if _multiplies(node) for name in [node.inputs[1]]]
    assert len(readers) == len(set(readers))
    assert not any(node.op_type == "If" for node in graph.model.graph)
    assert len(executed(graph, RUN, tmp_path)) == 6


def test_gates_that_share_a_decision() -> None:
    graph = compacted(grouped(skipping.onnx(skipping.lowered("llama", low_rank=True)), [0, 0]))
    assert sum(node.op_type == "GreaterOrEqual" for node in graph.model.graph) == 1
    ran = rows_alone(graph, LEVELS)
    assert (ran[..., 0] == ran[..., 1]).all()


def test_what_others_read_is_computed_for_all_rows() -> None:
    graph = skipping.onnx(skipping.lowered("llama")).fork()
    full = skips(graph.model.graph)[0].full
    graph.model.graph.outputs.append(full)
    after = compacted(graph)
    ids = tiny.feeds(2, 1)["input_ids"]
    outputs = after.run(feeds(after, ids, np.array([[RUN], [SKIP]]), None, 0))
    assert outputs["ran"].tolist() == [[True, True], [False, False]]
    assert outputs[full.name or ""].shape == (2, 1, 32)
    for row, level in enumerate((RUN, SKIP)):
        one = slice(row, row + 1)
        expected = skipping.oracle("llama", ids[one], np.array([[level]]))
        assert_close(outputs["logits"][one].astype(np.float32), expected, **ENGINE)


def test_input_is_untouched_and_weights_are_shared() -> None:
    graph = skipping.onnx(skipping.lowered("qwen2", low_rank=True))
    before = graph.text()
    after = compacted(graph)
    assert graph.text() == before
    old, new = (each.model.graph.initializers for each in (graph, after))
    assert set(old) == set(new)
    assert all(new[name].const_value is value.const_value for name, value in old.items())


def test_a_graph_without_gates_is_itself() -> None:
    graph = run_always(skipping.onnx(skipping.lowered("llama")), (0, 1))
    assert compacted(graph) is graph


def test_refuses_a_value_that_may_have_rows() -> None:
    graph = skipping.onnx(skipping.lowered("llama")).fork()
    for node in graph.model.graph:
        if node.op_type == "SkipSimplifiedLayerNormalization":
            node.outputs[0].shape = None
    with pytest.raises(PassError, match=r"model\.layers\.1\.skip: .* has no shape"):
        compacted(graph)
