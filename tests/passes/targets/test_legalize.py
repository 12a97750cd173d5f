from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from adaptc.errors import PassError
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.passes import Pipeline
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.targets.legality import check
from adaptc.passes.targets.legalize import Legalize
from tests.models import tiny, trt_bundle


def test_golden(golden: Callable[[str, str], None]) -> None:
    fused = Pipeline((FuseProjections(),)).run(tiny.cached("llama"))
    golden("legalize/llama", str(Pipeline((Legalize(),)).run(fused)))


def test_every_operator_is_one_that_tensorrt_has() -> None:
    model = trt_bundle.program("gemma2").graph("lm", OnnxGraph).model
    assert model.opset_imports == {"": 17}
    check(model)
    assert {str(value.dtype) for value in model.graph.inputs} == {"INT32", "FLOAT16"}


def test_input_is_untouched_and_a_second_time_changes_nothing() -> None:
    cached = tiny.cached("llama")
    before = cached.graph("lm", OnnxGraph).text()
    once = Pipeline((Legalize(),)).run(cached)
    assert cached.graph("lm", OnnxGraph).text() == before
    assert Pipeline((Legalize(),)).run(once) is once


def test_bf16_is_the_type_of_products_and_of_the_cache() -> None:
    graph = Pipeline((Legalize("bf16"),)).run(tiny.cached("llama")).graph("lm", OnnxGraph)
    kinds = {str(node.op_type): str(node.outputs[0].dtype) for node in graph.model.graph if node.op_type == "Gemm"}
    assert kinds == {"Gemm": "BFLOAT16"}
    assert {str(v.dtype) for v in graph.model.graph.inputs if (v.name or "").startswith("past.")} == {"BFLOAT16"}


def one_node(node: ir.Node, opset: int = 17) -> ir.Model:
    graph = ir.Graph(
        [v for v in node.inputs if v is not None], list(node.outputs), nodes=[node], opset_imports={"": opset}
    )
    return ir.Model(graph, ir_version=8)


def value(dtype: ir.DataType = ir.DataType.FLOAT, rank: int = 1) -> ir.Value:
    return ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape([2] * rank))


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        (ir.node("Attention", [value()], name="layer"), "layer: Attention; TensorRT has no such operator at opset 17"),
        (ir.node("Relu", [value()], domain="com.microsoft", name="n"), "n: com.microsoft.Relu; only ONNX's own"),
        (ir.node("Shape", [value()], {"start": 1}, name="n"), "n: Shape with start and end; 8.6 ignores them"),
    ],
)
def test_refuses_what_the_builder_would(node: ir.Node, sentence: str) -> None:
    with pytest.raises(PassError) as error:
        check(one_node(node))
    assert str(error.value).startswith(sentence)


def branch(name: str, dtype: ir.DataType = ir.DataType.FLOAT, rank: int = 1, inner: ir.Node | None = None) -> ir.Graph:
    result = value(dtype, rank)
    node = inner or ir.node("Identity", [value(dtype, rank)], outputs=[result], name=f"{name}/Identity")
    return ir.Graph([], list(node.outputs), nodes=[node], name=name)


def conditional(then: ir.Graph, other: ir.Graph) -> ir.Node:
    condition = ir.Value(name="c", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    return ir.node("If", [condition], {"then_branch": then, "else_branch": other}, name="gate")


def test_refuses_branches_that_differ() -> None:
    with pytest.raises(PassError, match="gate: branches give FLOAT and INT32"):
        check(one_node(conditional(branch("a"), branch("b", ir.DataType.INT32))))
    with pytest.raises(PassError, match="gate: branches give 1 and 2 axes"):
        check(one_node(conditional(branch("a"), branch("b", rank=2))))


def test_refuses_an_if_inside_an_if() -> None:
    inner = conditional(branch("c"), branch("d"))
    inner.name = "inner"
    inner.outputs[0].type, inner.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2])
    with pytest.raises(PassError, match="inner: an If inside that of gate"):
        check(one_node(conditional(branch("a", inner=inner), branch("b"))))


def test_refuses_a_later_opset() -> None:
    with pytest.raises(PassError, match=r"opset 18; TensorRT 8\.6 reads up to 17"):
        check(one_node(ir.node("Relu", [value()], name="n"), opset=18))


def test_a_second_time_changes_nothing() -> None:
    made = trt_bundle.program("llama")
    assert Legalize().apply(made) is made


def test_a_decoder_without_a_cache_is_refused() -> None:
    with pytest.raises(PassError, match="RotaryEmbedding; TensorRT has no such operator at opset 17"):
        Legalize().apply(tiny.lowered("llama"))
