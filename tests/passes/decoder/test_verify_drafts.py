"""verify_drafts: several tokens of a sequence in one run, to the very bits that as many steps leave."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from adaptc.compiler.pipeline import plan_of
from adaptc.errors import PassError
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Program
from adaptc.passes import Pipeline
from adaptc.passes.decoder.fuse_norms import FuseNorms
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.decoder.kv_cache import ATTENTION
from adaptc.passes.decoder.verify_drafts import VerifyDrafts
from adaptc.passes.quantize.float_weights import FloatWeights
from adaptc.passes.quantize.quantize import Quantize
from adaptc.passes.skip_ffn.branch import Branch
from adaptc.runtime.bundle.manifest import VerificationGraph
from adaptc.runtime.bundle.names import present, present_after
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.speculation.self_check import CLOSE, self_check
from adaptc.spec.reading import parse_spec
from tests.models import skipping, tiny
from tests.models.drafts import compared, verifying

IDS = [int(token) for token in tiny.feeds(1, 40, seed=4)["input_ids"][0]]
WEIGHTS = ("fp32", "fp16", "int8", "int4")


@cache
def emitted(family: str, weights: str) -> Program:
    """A family's program after all passes of a target; weights are rounded without a text."""
    text = (
        "version: 1\nmodels: {lm: {source: none}}\n"
        f"target: {{weights: {weights}, max_tokens: 64, block_size: 16}}\n"
    )
    passes = plan_of(parse_spec(text), Path()).passes
    return Pipeline(tuple(each for each in passes if each.name not in ("gptq", "lower"))).run(tiny.cached(family))


@cache
def gated(batch: str, weights: str = "int4", warmup: int = 0) -> Program:
    """Gates of a batch policy, and the dense twin."""
    thresholds = ((0.0, -math.inf), (0.1, -0.4), (0.5, 0.6))
    gates = SkipGates("learned", skipping.GATED, 3, warmup, batch, thresholds, rows=4)
    program = replace(skipping.lowered("llama", low_rank=True), gates={"lm": gates})
    rounding = Quantize(block_size=16) if weights == "int4" else FloatWeights()
    return Pipeline((rounding, Branch(), VerifyDrafts())).run(program)


def rounds_otherwise() -> bool:
    """Whether this processor is one whose 4-bit kernels are known to round several rows otherwise than one."""
    flags = Path("/proc/cpuinfo")
    return not (flags.exists() and "avx512" in flags.read_text())


def unrolled(program: Program, size: int) -> OnnxGraph:
    return program.graph(f"lm.verify{size}", OnnxGraph)


def test_golden(golden: Callable[[str, str], None]) -> None:
    fused = Pipeline((FuseNorms(), FuseProjections(), VerifyDrafts(sizes=(2,)))).run(tiny.cached("llama"))
    golden("verify_drafts/llama", str(unrolled(fused, 2).text()))


def test_the_program_says_which_graphs_verify() -> None:
    program = VerifyDrafts().apply(tiny.cached("llama"))
    graphs = (VerificationGraph(4, "lm.verify4"), VerificationGraph(8, "lm.verify8"))
    assert program.verification == {"lm": graphs}
    assert program.verifying == {"lm.verify4": "lm", "lm.verify8": "lm"}
    assert program.forms == {"lm.verify4", "lm.verify8"}
    assert program.plan == tiny.cached("llama").plan
    both = gated("rows")
    assert {*both.verification} == {"lm", "lm.dense"}
    assert both.forms == {"lm.dense", *(f"{name}.verify{size}" for name in ("lm", "lm.dense") for size in (4, 8))}


@pytest.mark.parametrize("sizes", [(2,), (4, 8), (3,)])
def test_each_row_has_a_call_and_the_cache_goes_from_one_to_the_next(sizes: tuple[int, ...]) -> None:
    program = VerifyDrafts(sizes).apply(tiny.cached("llama"))
    program.verify()
    for size in sizes:
        graph = unrolled(program, size).model.graph
        calls = [node for node in graph if node.op_type == ATTENTION]
        assert len(calls) == 3 * size
        outputs = {value.name for value in graph.outputs}
        for layer in range(3):
            own = calls[layer * size : (layer + 1) * size]
            for kind, at in (("key", 1), ("value", 2)):
                names = [present_after(layer, kind, row) for row in range(size - 1)] + [present(layer, kind)]
                assert [call.outputs[at].name for call in own] == names
                assert outputs >= {*names}
                assert all(after.inputs[2 + at] is before.outputs[at] for before, after in pairwise(own))
        rows = next(value for value in graph.inputs if value.name == "rows")
        assert (rows.dtype, [*(rows.shape or ())]) == (ir.DataType.INT64, [size])


def test_input_is_untouched_and_weights_are_shared() -> None:
    program = tiny.cached("llama")
    before = str(program)
    after = VerifyDrafts().apply(program)
    assert str(program) == before
    assert after.graphs["lm"] is program.graphs["lm"]
    old = tiny.onnx(program).model.graph.initializers
    new = unrolled(after, 8).model.graph.initializers
    assert all(new[name].const_value is value.const_value for name, value in old.items())


def test_no_match_returns_the_same_program() -> None:
    for program in (tiny.program("llama"), tiny.lowered("llama"), VerifyDrafts().apply(tiny.cached("llama"))):
        assert VerifyDrafts().apply(program) is program


def test_a_graph_that_is_told_positions_has_none() -> None:
    graph = tiny.onnx(tiny.cached("llama")).fork()
    value = ir.Value(name="position_ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([3, "batch", "tokens"]))
    graph.model.graph.inputs.append(value)
    program = tiny.cached("llama").with_graph("lm", graph)
    assert VerifyDrafts().apply(program) is program


def test_refuses_attention_over_no_layers_cache() -> None:
    graph = tiny.onnx(tiny.cached("llama")).fork()
    node = next(node for node in graph.model.graph if node.op_type == ATTENTION)
    node.replace_input_with(3, None)
    message = (
        r"^pass 'verify_drafts' \(after .*\): model\.layers\.0\.self_attn.*: "
        r"GroupQueryAttention over a layer's cache is needed; its input 3 is None$"
    )
    with pytest.raises(PassError, match=message):
        Pipeline((VerifyDrafts(),)).run(tiny.cached("llama").with_graph("lm", graph))


@pytest.mark.parametrize(
    ("family", "weights"),
    [
        *((family, weights) for family in tiny.FIRST for weights in WEIGHTS),
        *(("qwen2-moe", weights) for weights in WEIGHTS),
        ("llama4", "int8"),
        *((family, "fp32") for family in ("phi3-partial", "smollm3", "cohere", "gpt2")),
    ],
)
def test_runs_leave_what_steps_leave(family: str, weights: str, tmp_path: Path) -> None:
    """Windows and soft caps are among the families; the text goes on beyond their windows of 5."""
    with verifying(emitted(family, weights), tmp_path) as decoder:
        found = self_check(decoder, decoder)
        if not found.exact:
            if family in tiny.WITH_EXPERTS and weights in ("fp32", "fp16"):
                return  # an expert's rows are one product of floats, which rounds by how many there are
            assert weights == "int4", "float and 8-bit kernels round each row by itself"
            assert rounds_otherwise()
            return
        for prompt in (1, 9):
            runs = compared(decoder, IDS[: prompt + 8], prompt=prompt)
            assert len(runs) == 8
            assert all(run.same_cache for run in runs)
            assert max(run.widest for run in runs) <= CLOSE


def test_the_comparison_sees_a_graph_that_reads_another_row(tmp_path: Path) -> None:
    """A negative control, and one for the self check."""
    program = VerifyDrafts().apply(tiny.cached("llama"))
    graph = unrolled(program, 4).fork()
    call = [node for node in graph.model.graph if node.op_type == ATTENTION][5]  # the second of the second layer
    call.replace_input_with(2, [node for node in graph.model.graph if node.op_type == ATTENTION][4].inputs[2])
    with verifying(program.with_graph("lm.verify4", graph), tmp_path) as decoder:
        runs = compared(decoder, IDS[:13])
        assert [run.same_cache for run in runs] == [True, False, False, False, True, True, True, True]
        assert max(run.widest for run in runs) > CLOSE
        assert not self_check(decoder, decoder).exact


def test_the_last_places_of_a_cache_are_read_and_written(tmp_path: Path) -> None:
    ids = [IDS[place % 40] for place in range(64)]
    with verifying(emitted("llama", "fp32"), tmp_path, batch=2) as decoder:
        for prompt in (56, 60, 63):
            runs = compared(decoder, ids, prompt=prompt)
            assert [run.tokens for run in runs] == [*range(1, 65 - prompt)]
            assert all(run.same_cache and run.widest <= CLOSE for run in runs)


@pytest.mark.parametrize("weights", ["int4", "fp32"])
@pytest.mark.parametrize("budget", [1.0, 0.7, 0.3, 0.0])
@pytest.mark.parametrize("warmup", [0, 8])
def test_each_token_decides_for_itself(budget: float, weights: str, warmup: int, tmp_path: Path) -> None:
    """Of 8 tokens from position 5 on, three are of a warm-up of 8 positions."""
    options = RequestOptions(budget=budget)
    with verifying(gated("rows", weights, warmup), tmp_path) as decoder:
        if not self_check(decoder, decoder).exact:
            assert weights == "int4"
            assert rounds_otherwise()
            return
        assert decoder.verifiable(options) == 8
        assert [decoder.apart(options, count) for count in (1, 4, 5)] == [True, True, budget == 1], "as many as 4 skip"
        runs = compared(decoder, IDS[:13], options)
        assert all(run.same_cache and run.same_ran for run in runs)
        assert max(run.widest for run in runs) <= CLOSE
        decoder.rewind(0, 5)
        ran = decoder.verify(0, IDS[5:13]).ran
        assert [each is None for each in ran] == [place < warmup for place in range(5, 13)]
        kinds = {each for each in ran if each is not None}
        assert (kinds == {b"\x01\x01"}) == (budget == 1)
        assert len(kinds) > 1 or budget != 0.7, "some blocks run for some tokens"


@pytest.mark.parametrize("batch", ["any", "group", "off"])
def test_gates_that_decide_together_are_verified_whole_only(batch: str, tmp_path: Path) -> None:
    with verifying(gated(batch, "fp32"), tmp_path) as decoder:
        assert decoder.verifiable(RequestOptions(budget=0.5)) == 0
        assert decoder.verifiable(RequestOptions(budget=1.0)) == 8
        assert decoder.apart(RequestOptions(budget=0.5), 1)
        assert not decoder.apart(RequestOptions(budget=0.5), 2)
        assert decoder.apart(RequestOptions(budget=1.0), 2)
        assert self_check(decoder, decoder).exact
        runs = compared(decoder, IDS[:13], RequestOptions(budget=1.0))
        assert all(run.same_cache and run.same_ran and run.widest <= CLOSE for run in runs)


@pytest.mark.parametrize("batch", ["any", "group", "rows"])
def test_gates_without_a_twin_are_verified_as_well(batch: str, tmp_path: Path) -> None:
    program = gated(batch, "fp32")
    graphs: dict[str, Any] = {name: graph for name, graph in program.graphs.items() if "dense" not in name}
    gates = replace(program.gates["lm"], dense="")
    alone = replace(program, graphs=graphs, gates={"lm": gates}, verification={"lm": program.verification["lm"]})
    with verifying(alone, tmp_path) as decoder:
        options = RequestOptions(budget=1.0)
        assert decoder.verifiable(options) == 8
        assert self_check(decoder, decoder).exact
        assert all(run.same_cache and run.same_ran for run in compared(decoder, IDS[:13], options))


def test_a_token_alone_is_read_as_a_step_reads_it(tmp_path: Path) -> None:
    """In the middle of a sequence, with gates that decide together too."""
    for batch in ("rows", "any", "group"):
        folder = tmp_path / batch
        folder.mkdir()
        options = RequestOptions(budget=0.3)
        with verifying(gated(batch, "fp32", warmup=6), folder) as decoder:
            decoder.start(0, np.array(IDS[:5]), options)
            steps = [(decoder.decode([token])[0].copy(), decoder.ran(0), decoder.digest(0, 0)) for token in IDS[5:13]]
            decoder.rewind(0, 5)
            for token, (logits, ran, kept) in zip(IDS[5:13], steps, strict=True):
                np.testing.assert_array_equal(decoder.read_token(0, token), logits)
                assert (decoder.ran(0), decoder.digest(0, 0)) == (ran, kept)
