from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc.errors import PassError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.marks import in_head, path_of
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Program
from adaptc.passes import Pipeline
from adaptc.passes.lower.kept_translations import slice_key
from adaptc.passes.lower.layers import LayerSlice
from adaptc.passes.lower.lower import Lower
from adaptc.passes.store import Memory
from adaptc.runtime.bundle.plan import Run
from tests.close import ENGINE, assert_close
from tests.models import skipping, tiny


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("lower/llama", str(tiny.lowered("llama")))


def test_golden_of_gates(golden: Callable[[str, str], None]) -> None:
    golden("lower/llama-gated", str(Pipeline((Lower(),)).run(Program({"lm": skipping.gated("llama")}, (Run("lm"),)))))


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma2"])
def test_equals_eager(family: str) -> None:
    """For any sizes; test_every_pass.py has every family."""

    @settings(max_examples=6, deadline=None)
    @given(batch=st.integers(1, 3), tokens=st.integers(1, 24), seed=st.integers(0, 2**20))
    def check(batch: int, tokens: int, seed: int) -> None:
        feeds = tiny.feeds(batch, tokens, seed)
        assert_close(
            tiny.onnx(tiny.lowered(family)).run(feeds)["logits"].astype("float32"), tiny.eager(family, feeds), **ENGINE
        )

    check()


def test_input_is_untouched_and_weights_are_shared() -> None:
    program = tiny.program("llama")
    before = str(program)
    after = Lower().apply(program)
    assert str(program) == before
    weights = dict(program.graph("lm", FxGraph).module.named_parameters())
    values = after.graph("lm", OnnxGraph).model.graph.initializers
    for name, parameter in weights.items():
        assert values[name].const_value.numpy().ctypes.data == parameter.data_ptr()  # type: ignore[union-attr]


def test_no_match_returns_the_same_program() -> None:
    program = tiny.lowered("llama")
    assert Lower().apply(program) is program


def test_refuses_an_operator_without_an_onnx_form() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta = {"val": torch.zeros(3, 3), "path": ""}
    y = graph.call_function(torch.ops.aten.linalg_eigvals.default, (x,))
    y.meta = {"val": torch.zeros(3, dtype=torch.complex64), "path": "model.odd"}
    graph.output((y,))
    module = torch.fx.GraphModule(torch.nn.Module(), graph)
    module.meta["outputs"] = ("y",)
    program = Program({"odd": FxGraph(module)}, (Run("odd"),))
    with pytest.raises(PassError, match=r"^pass 'lower': outside the layers: no ONNX form: .*linalg_eig"):
        Pipeline((Lower(),)).run(program)


def test_each_distinct_layer_is_translated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptc.passes.lower import translation

    translated = []
    original = translation.translate

    def spy(layer_slice: Any, *rest: Any) -> Any:
        translated.append(layer_slice.layer)
        return original(layer_slice, *rest)

    monkeypatch.setattr(translation, "translate", spy)
    store = Memory()
    first = Lower().apply_with(tiny.program("gemma3"), store)
    # Before the layers, one layer with a window, one without, after the layers.
    assert translated == ["", "model.layers.0", "model.layers.5", ""]
    again = Lower().apply_with(tiny.program("gemma3"), store)
    assert len(translated) == 4  # a store has them
    assert str(again) == str(first)


def test_nodes_know_their_module() -> None:
    paths = {path_of(node) for node in tiny.onnx(tiny.lowered("llama")).model.graph}
    assert {"model.layers.2.mlp.down_proj", "model.layers.0.self_attn", "model.norm", "lm_head"} <= paths


def test_a_translation_is_kept_with_all_that_decides_it() -> None:
    """Numbers that the text of a layer rounds, and which inputs are those of the whole graph."""

    def key(slope: float, *, reads_input: bool) -> str:
        graph = torch.fx.Graph()
        x = graph.placeholder("x")
        y = x if reads_input else graph.call_function(torch.ops.aten.neg.default, (x,))
        z = graph.call_function(torch.ops.aten.mul.Tensor, (y, slope))
        for node in (x, y, z):
            node.meta = {"val": torch.zeros(3, 3), "path": ""}
        graph.output((z,))
        return slice_key(LayerSlice.of("", [z]), FxGraph(torch.fx.GraphModule(torch.nn.Module(), graph)))

    keys = [key(slope, reads_input=reads) for slope in (1.0000001, 1.0000002) for reads in (True, False)]
    assert len(set(keys)) == 4
    assert key(1.0000001, reads_input=True) == keys[0]


@pytest.mark.parametrize(
    ("family", "operators"), [("llama", "RMSNormalization MatMul"), ("gemma2", "RMSNormalization MatMul Div Tanh Mul")]
)
def test_the_head_is_marked(family: str, operators: str) -> None:
    graph = tiny.onnx(tiny.lowered(family)).model.graph
    assert [node.op_type for node in graph if in_head(node)] == operators.split()
