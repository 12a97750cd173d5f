"""quantize and gptq."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from adaptc.errors import PassError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.marks import PATH
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Program
from adaptc.ir.unread.constants import UnreadConstant
from adaptc.passes import Pipeline
from adaptc.passes.lower.lower import Lower
from adaptc.passes.match import initializer
from adaptc.passes.quantize.blockwise import dequantize, quantize_blocks
from adaptc.passes.quantize.gptq import Gptq
from adaptc.passes.quantize.quantize import BITS, Quantize
from adaptc.runtime.bundle.plan import Run
from tests.close import assert_close
from tests.models import tiny

BATCH = tiny.feeds(2, 12, seed=3)["input_ids"]


def kl(family: str, program: Program) -> float:
    """Mean KL of a program's predictions from the model's own, in nats."""
    feeds = {"input_ids": BATCH, "position_ids": np.tile(np.arange(12), (2, 1))}
    true, got = (_log_softmax(x) for x in (tiny.eager(family, feeds), tiny.step(tiny.onnx(program), BATCH)[0]))
    return float((np.exp(true) * (true - got)).sum(-1).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_golden(weights: str, golden: Callable[[str, str], None]) -> None:
    golden(f"quantize/llama-tied-{weights}", str(Quantize(weights).apply(tiny.cached("llama-tied"))))  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama-tied", "qwen2", "gemma2"])
def test_near_eager_and_nearer_with_more_bits(family: str) -> None:
    eight, four = (kl(family, Pipeline((Quantize(weights),)).run(tiny.cached(family))) for weights in BITS)  # type: ignore[arg-type]
    assert eight < 0.005
    assert 2 * eight < four < 0.5


def test_a_table_whose_rows_are_no_whole_blocks_stays_as_it_is() -> None:
    """The tiny models are 32 wide; a row read in blocks of 64 would come with its padding."""
    program = Pipeline((Quantize("int8", 64),)).run(tiny.cached("llama"))
    assert "GatherBlockQuantized" not in str(program)
    assert kl("llama", program) < 0.01


def test_input_is_untouched() -> None:
    program = tiny.cached("llama")
    before = str(program)
    assert Quantize().apply(program) is not program
    assert str(program) == before


def test_no_match_returns_the_same_program() -> None:
    program = Pipeline((Quantize(),)).run(tiny.cached("llama"))
    assert Quantize().apply(program) is program


def test_refuses_weights_that_are_not_finite() -> None:
    program = tiny.cached("llama")
    graph = tiny.onnx(program).fork()
    name = "model.layers.1.mlp.down_proj.weight"
    value = graph.model.graph.initializers[name]
    import onnx_ir as ir

    value.const_value = ir.tensor(np.full((32, 64), np.nan, np.float32), name=name)
    with pytest.raises(PassError, match=r"NaN or infinity"):
        Pipeline((Quantize(),)).run(program.with_graph("lm", graph))


def test_a_head_keeps_eight_bits_for_frequent_tokens() -> None:
    nodes = [
        node
        for node in tiny.onnx(Pipeline((Quantize(),)).run(tiny.cached("llama"))).model.graph
        if node.op_type == "MatMulNBits" and "lm_head" in (node.name or "")
    ]
    assert [(n.attributes.get_int("bits", 0), n.attributes.get_int("N", 0)) for n in nodes] == [(8, 7), (4, 54)]


def test_golden_of_gptq(golden: Callable[[str, str], None]) -> None:
    program = replace(tiny.program("llama-tied"), samples={"lm": tiny.feeds(1, 300, seed=9)["input_ids"][0]})
    golden("gptq/llama-tied", str(Pipeline((Gptq(block_size=16),)).run(program)))


def test_codes_chosen_by_gptq_are_stored() -> None:
    program = replace(tiny.program("llama"), samples={"lm": tiny.feeds(1, 300, seed=9)["input_ids"][0]})
    chosen = Pipeline((Gptq(block_size=16),)).run(program)
    name = "model.layers.0.mlp.down_proj.weight"
    lowered = Pipeline((Lower(),)).run(chosen)
    stored = tiny.onnx(Quantize(block_size=16).apply(lowered)).model.graph.initializers
    codes = stored[f"{name}.codes"].const_value
    assert codes is not None
    assert (codes.numpy() == chosen.blocks[name].packed).all()


def test_gptq_leaves_the_graph_and_changes_outputs_less_than_rounding() -> None:
    ids = tiny.feeds(1, 2000, seed=4)["input_ids"][0]
    program = replace(tiny.program("llama"), samples={"lm": ids})
    chosen = Pipeline((Gptq(),)).run(program)
    assert chosen.graphs["lm"] is program.graphs["lm"]
    weight = "model.layers.1.mlp.down_proj.weight"
    assert set(chosen.blocks) == _linear_names(program)
    original = dict(program.graph("lm", FxGraph).module.named_parameters())[weight].detach().numpy()
    assert_close(dequantize(chosen.blocks[weight]), original, rtol=0.0, atol=0.35)
    from tests.models.tiny import cached

    gptq = kl("llama", Pipeline((Quantize(),)).run(replace(cached("llama"), blocks=chosen.blocks)))
    plain = kl("llama", Pipeline((Quantize(),)).run(cached("llama")))
    assert gptq < plain


def _linear_names(program: Program) -> set[str]:
    names = dict(program.graph("lm", FxGraph).module.named_parameters())
    return {name for name in names if "proj" in name or "lm_head" in name}


def test_gptq_without_text_returns_the_same_program() -> None:
    program = tiny.program("llama")
    assert Gptq().apply(program) is program


def test_memory_is_that_of_a_matrix() -> None:
    width, count = 512, 64
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="main")
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 1, width]))
    graph.inputs.append(value)
    for number in range(count):

        def drawn(seed: int = number) -> npt.NDArray[np.float32]:
            return np.random.default_rng(seed).standard_normal((width, width), np.float32)

        weight = initializer(graph, UnreadConstant(f"{number}.weight", ir.DataType.FLOAT, (width, width), drawn))
        turned = ir.node("Transpose", [weight], {"perm": [1, 0]}, name=f"{number}/Transpose")
        product = ir.node("MatMul", [value, turned.outputs[0]], name=f"{number}/MatMul", metadata_props={PATH: "layer"})
        graph.extend([turned, product])
        value = product.outputs[0]
        value.name, value.type, value.shape = product.name, ir.TensorType(ir.DataType.FLOAT), graph.inputs[0].shape
    graph.outputs.append(value)
    program = Program({"lm": OnnxGraph(ir.Model(graph, ir_version=10))}, (Run("lm"),))
    tracemalloc.start()
    try:
        made = Quantize("int8").apply(program)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    constants = [value.const_value for value in made.graph("lm", OnnxGraph).model.graph.initializers.values()]
    stored = sum(each.nbytes for each in constants if each is not None)
    assert stored > count * width * width
    assert held < stored / 4
    assert peak < stored
    expected = quantize_blocks(np.random.default_rng(9).standard_normal((width, width), np.float32), 8)
    codes = made.graph("lm", OnnxGraph).model.graph.initializers["9.weight.codes"].const_value
    assert codes is not None
    assert np.array_equal(codes.numpy(), expected.packed)
