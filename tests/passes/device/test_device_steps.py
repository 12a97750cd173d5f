from __future__ import annotations

import re
from collections.abc import Callable

import onnx_ir as ir
import pytest

from adaptc.errors import PassError
from adaptc.ir.device_lowering import DeviceLowering
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Program
from adaptc.passes import Pass, Pipeline
from adaptc.passes.decoder.fuse_norms import FuseNorms
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.decoder.kv_cache import KvCache
from adaptc.passes.decoder.logits_from import LogitsFrom
from adaptc.passes.device.device_steps import DeviceSteps, cpu_only
from adaptc.passes.lower.lower import Lower
from adaptc.passes.quantize.float_weights import FloatWeights
from adaptc.passes.quantize.quantize import Quantize
from adaptc.passes.skip_ffn import gating
from adaptc.passes.skip_ffn.branch import Branch
from adaptc.passes.skip_ffn.skips import FULL
from adaptc.runtime.backends.cuda.kernels.row_source import row_source
from adaptc.runtime.bundle.names import LOGITS
from tests.models import skipping, tiny

CACHE = Lower(), KvCache(max_tokens=64), LogitsFrom()
FUSED = FuseNorms(), FuseProjections()
WEIGHTS: dict[str, Pass] = {
    "fp32": FloatWeights(),
    "fp16": FloatWeights("fp16"),
    "int8": Quantize("int8", 16),
    "int4": Quantize("int4", 16),
}
REQUIRED = DeviceSteps(required=True)


def stored(program: Program, weights: str = "int4") -> Program:
    """A program before `device_steps`."""
    return Pipeline((*FUSED, WEIGHTS[weights])).run(program)


def lowering(program: Program) -> DeviceLowering:
    """What the pass makes of a program before it."""
    return REQUIRED.apply(program).steps["lm"]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_golden(golden: Callable[[str, str], None], family: str) -> None:
    golden(f"device_steps/{family}", lowering(stored(tiny.cached(family))).text())


@pytest.mark.parametrize(("name", "low_rank"), [("llama-gated", True), ("llama-gated-zeros", False)])
def test_golden_with_gates(golden: Callable[[str, str], None], name: str, low_rank: bool) -> None:
    program = Pipeline((WEIGHTS["int4"],)).run(skipping.lowered("llama", low_rank=low_rank, rank=skipping.GPU_RANK))
    golden(f"device_steps/{name}", lowering(program).text())


@pytest.mark.parametrize(
    ("family", "weights"),
    [
        (family, weights)
        for family in tiny.DENSE
        for weights in WEIGHTS
        if family in tiny.FIRST or (family not in tiny.ON_CPU_ONLY and weights == "int4")
    ],
)
def test_every_family_is_a_step_in_all_weights(family: str, weights: str) -> None:
    program = stored(tiny.cached(family), weights)
    found = lowering(program)
    step, graph = found.step, program.graph("lm", OnnxGraph)
    model = tiny.model(family).config
    kinds = [call.kind for call in step.calls()]
    assert "lookup" in kinds[:2]  # what is made of weights alone comes before all
    assert kinds[-1] == "gemm" or step.head[-1].kind == "rows"  # a cap of the logits comes after the head
    assert kinds.count("attention") == len(step.attentions) == model.num_hidden_layers
    assert (step.source, step.result) == ("input_ids", LOGITS)
    assert step.values[LOGITS].width == tiny.VOCAB
    assert not step.gates
    bits = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}[weights]
    assert {weight.bits for weight in step.gemms} == ({bits} if bits != 4 else {weight.bits for weight in step.gemms})
    assert bits in {weight.bits for weight in step.gemms}
    # All names are the graph's own, so the data file has each weight once.
    assert found.tensors.keys() <= graph.model.graph.initializers.keys()
    written: set[str] = {step.source}
    for call in step.calls():
        assert {name for name in call.reads if name in step.values} <= written
        written |= set(call.writes)
    assert row_source(step.row_kernels).count("__global__") == len(step.row_kernels)


@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_a_model_with_experts_runs_on_a_cpu_only(weights: str) -> None:
    program = stored(tiny.cached("qwen2-moe"), weights)
    assert DeviceSteps().apply(program) is program
    with pytest.raises(PassError, match=r"^model\.layers\.0\.mlp\.experts: experts; no kernel of a step computes"):
        REQUIRED.apply(program)


@pytest.mark.parametrize("family", tiny.ON_CPU_ONLY)
def test_other_families_stay_on_a_cpu_with_a_reason(family: str) -> None:
    program = stored(tiny.cached(family), "fp32")
    assert DeviceSteps().apply(program) is program
    [(name, reason)] = cpu_only(program).items()
    assert name == "lm"
    with pytest.raises(PassError, match=f"^{re.escape(reason)}$"):
        REQUIRED.apply(program)


def test_windows_and_caps_are_the_models() -> None:
    step = lowering(stored(tiny.cached("gemma2"))).step
    assert [layer.window for layer in step.attentions] == [5, 0, 5]
    assert {layer.softcap for layer in step.attentions} == {50.0}
    assert [layer.layer for layer in step.attentions] == [0, 1, 2]


def test_a_tied_head_reads_what_the_embedding_reads() -> None:
    step = lowering(stored(tiny.cached("llama-tied"), "int8")).step
    [table], head = step.lookups, step.gemms[step.head[-1].which]
    assert (table.codes, table.scales) == (head.codes, head.scales) or table.codes != head.codes
    assert head.results == tiny.VOCAB


def test_gates_that_compare_the_same_are_decided_once() -> None:

    def shared(graph: ir.Graph) -> None:
        one, other = (node for node in graph if node.op_type == "Skip")
        other.replace_input_with(0, one.inputs[0])

    whole = Pipeline((WEIGHTS["int4"],)).run(skipping.lowered("llama"))
    for program, leaders in ((whole, (0, 1)), (changed(shared, program=whole), (0, 0))):
        step = lowering(program).step
        assert step.leaders == step.gates == leaders
        assert [call.decides for call in step.calls() if call.decides is not None] == sorted(set(leaders))
        assert {call.gate for call in step.calls()} - {None} == set(leaders)


def test_a_gate_that_says_the_same_for_every_token_is_decided_at_the_beginning() -> None:
    graph = gating.static(tiny.fx("llama"), {1: 1.0, 2: 2.0}, {})
    step = lowering(stored(Pipeline(CACHE).run(tiny.program("llama").with_graph("lm", graph)))).step
    assert [call.decides for call in step.body[:3]] == [0, 1, None]
    biases = [(f"model.layers.{layer}.skip.gate.bias",) for layer in (1, 2)]
    assert [call.reads for call in step.body[:2]] == biases  # and no value of a token


def test_a_graph_that_is_no_decoder_has_no_step() -> None:
    lowered = tiny.lowered("llama")
    assert DeviceSteps(required=True).apply(lowered) is lowered


def test_input_is_untouched_and_a_second_time_changes_nothing() -> None:
    program = stored(tiny.cached("llama"))
    text = program.graph("lm", OnnxGraph).text()
    after = REQUIRED.apply(program)
    assert after.graph("lm", OnnxGraph).text() == text
    assert not program.steps
    assert REQUIRED.apply(after) is after


def test_branch_comes_after_and_keeps_the_step() -> None:
    whole = skipping.lowered("llama", low_rank=True, rank=skipping.GPU_RANK)
    program = Pipeline((WEIGHTS["int4"], REQUIRED)).run(whole)
    assert Branch().apply(program).steps["lm"] is program.steps["lm"]


# What no kernel computes


def changed(change: Callable[[ir.Graph], None], weights: str = "int4", program: Program | None = None) -> Program:
    """A program whose graph was changed."""
    made = stored(tiny.cached("llama"), weights) if program is None else program
    graph = made.graph("lm", OnnxGraph).fork()
    change(graph.model.graph)
    return made.with_graph("lm", graph)


def first(graph: ir.Graph, kind: str) -> ir.Node:
    return next(node for node in graph if node.op_type == kind)


def unknown(graph: ir.Graph) -> None:
    first(graph, "Sigmoid").op_type = "Softplus"


def left_out(graph: ir.Graph) -> None:
    first(graph, "Sigmoid").replace_input_with(0, None)


def sliced(graph: ir.Graph) -> None:
    first(graph, "Slice").replace_input_with(1, first(graph, "Slice").inputs[2])


def permuted(graph: ir.Graph) -> None:
    node = first(graph, "MatMulNBits")
    node.resize_inputs(5)
    node.replace_input_with(4, node.inputs[1])


def two_bits(graph: ir.Graph) -> None:
    first(graph, "MatMulNBits").attributes["bits"] = ir.AttrInt64("bits", 2)


def narrow(graph: ir.Graph) -> None:
    first(graph, "MatMulNBits").attributes["K"] = ir.AttrInt64("K", 12)


def scaled(graph: ir.Graph) -> None:
    first(graph, "FusedMatMul").attributes["alpha"] = ir.AttrFloat32("alpha", 2.0)


def product(graph: ir.Graph) -> None:
    first(graph, "FusedMatMul").op_type = "MatMul"


def other_ids(graph: ir.Graph) -> None:
    """Ids that were computed: twice the token's."""
    node = first(graph, "GatherBlockQuantized")
    twice = ir.node("Add", [node.inputs[1], node.inputs[1]])
    twice.outputs[0].dtype = ir.DataType.INT64
    graph.insert_before(node, twice)
    node.replace_input_with(1, twice.outputs[0])


def interleaved(graph: ir.Graph) -> None:
    first(graph, "GroupQueryAttention").attributes["rotary_interleaved"] = ir.AttrInt64("rotary_interleaved", 1)


def nothing(graph: ir.Graph) -> None:
    output = next(value for value in graph.outputs if value.name == LOGITS)
    output.name = "scores"


REFUSED: list[tuple[Callable[[ir.Graph], None], str, str]] = [
    (unknown, "int4", "model.layers.0.mlp.act_fn: Softplus; no kernel of a step computes it"),
    (left_out, "int4", "model.layers.0.mlp.act_fn: input 0 of Sigmoid is left out; no kernel computes it"),
    (sliced, "int4", "lm_head: Slice; no kernel of a step computes it"),
    (permuted, "int4", "model.layers.0.self_attn.qkv_proj: MatMulNBits of 4 bits in another order; 4 and 8 are right"),
    (two_bits, "int4", "model.layers.0.self_attn.qkv_proj: MatMulNBits of 2 bits in another order; 4 and 8 are right"),
    (narrow, "int4", "model.layers.0.self_attn.qkv_proj: 12 columns; a multiple of 8 is right on a GPU"),
    (scaled, "fp32", "model.layers.0.self_attn.qkv_proj: FusedMatMul of two values; no kernel of a step computes it"),
    (product, "fp32", "model.layers.0.self_attn.qkv_proj: MatMul; no kernel of a step computes it"),
    (other_ids, "int8", "node_Add_0: Add reads input_ids, which no row has"),
    (interleaved, "int4", "model.layers.0.self_attn: attention with more inputs than kernels of a step read"),
]


@pytest.mark.parametrize(("change", "weights", "message"), REFUSED, ids=lambda each: getattr(each, "__name__", ""))
def test_what_no_kernel_computes_is_refused_by_name(
    change: Callable[[ir.Graph], None], weights: str, message: str
) -> None:
    program = changed(change, weights)
    with pytest.raises(PassError) as error:
        DeviceSteps(required=True).apply(program)
    assert str(error.value) == message
    assert DeviceSteps().apply(program) is program, "the graph runs on a CPU only"


def test_a_graph_without_logits_is_refused() -> None:
    program = changed(nothing)
    with pytest.raises(PassError, match=r"^outputs: scores, present\.0\.key, .*; logits or hidden states are right$"):
        REQUIRED.apply(program)


def test_a_block_that_others_read_is_refused() -> None:
    def leak(graph: ir.Graph) -> None:
        *_, last = (node for node in graph if node.op_type == "SkipSimplifiedLayerNormalization")
        last.replace_input_with(1, first(graph, "Skip").inputs[FULL])

    program = changed(leak, program=Pipeline((WEIGHTS["int4"],)).run(skipping.lowered("llama")))
    with pytest.raises(PassError, match=r"^\S+: others read what it gives; a block of its own is right$"):
        REQUIRED.apply(program)
