"""A decoder's layers, each a graph over weights that are inputs, give what the whole graph gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from adaptc.errors import PassError
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.passes import Pipeline
from adaptc.passes.device.device_steps import DeviceSteps
from adaptc.passes.device.prompt_layers import prompt_layers
from adaptc.runtime.bundle.gpu_steps.device_prompt import PromptPieces
from adaptc.runtime.bundle.gpu_steps.device_step import StepWeight
from adaptc.runtime.bundle.names import LOGITS_FROM, cache_tensor, past
from adaptc.runtime.bundle.strict_json import dumps
from adaptc.runtime.errors import BundleError
from tests.fakes.cuda import FakeCuda
from tests.fakes.onnxruntime_gpu import FakeOrt, FakeSession
from tests.models import prompt_bundle, tiny

Arrays = dict[str, npt.NDArray[Any]]

CASES = [
    ("llama", "int4", False),
    ("llama", "int4", True),
    ("qwen2", "int8", False),
    ("qwen3", "fp16", False),
    ("gemma2", "fp32", False),
    ("gemma2", "int4", False),
    ("gemma3", "int8", False),
    ("mistral-window", "fp16", False),
]


@pytest.mark.parametrize(("family", "weights", "gated"), CASES)
def test_layers_one_after_another_are_the_whole(family: str, weights: str, gated: bool) -> None:
    made = prompt_bundle.program(family, weights, gated=gated)
    ids = tiny.feeds(batch=1, tokens=33)["input_ids"]
    rows, want = whole(made.graph("lm", OnnxGraph), ids)
    got = np.concatenate(in_pieces(made, rows, (20, 13)), 1)
    assert got.shape == want.shape
    assert np.abs(got - want).max() < 4e-3 * np.abs(want).max()


def test_layers_that_differ_in_weights_alone_are_one_graph() -> None:
    pieces = prompt_bundle.program("llama", "int4").steps["lm"].prompt
    assert pieces is not None
    # The first layer reads the embedding, the others two values that they add; the last norm is behind all layers.
    assert [call.graph for call in pieces.pieces.calls] == ["0", "1", "1", "2"]
    windows = prompt_bundle.program("gemma2", "int4").steps["lm"].prompt
    assert windows is not None
    # The embedding's scale; layers with a window, without one, and with one.
    assert [call.graph for call in windows.pieces.calls] == ["0", "1", "2", "3", "4"]


def test_weights_are_inputs_and_products_have_half_precision() -> None:
    prompt = prompt_bundle.program("llama", "int4").steps["lm"].prompt
    assert prompt is not None
    for call in prompt.pieces.calls:
        graph = prompt.models[call.graph].graph
        assert not graph.initializers
        kinds = {name: value.dtype for name, value in zip(call.reads, graph.inputs, strict=True)}
        assert {kinds[name] for name in call.reads if name in prompt.pieces.products} <= {ir.DataType.FLOAT16}
        assert {kinds[name] for name in call.reads if cache_tensor(name)} <= {ir.DataType.FLOAT16}
        products = [node for node in graph if node.op_type == "FusedMatMul"]
        assert all(value is not None and value.dtype == ir.DataType.FLOAT16 for n in products for value in n.inputs)


def test_a_weight_whose_result_joins_the_residual_stream_is_a_sixteenth() -> None:
    prompt = prompt_bundle.program("gemma2", "int4").steps["lm"].prompt
    assert prompt is not None
    factors = {name.split(".")[-3]: each.factor for name, each in prompt.pieces.products.items()}
    assert factors == {"qkv_proj": 1, "o_proj": 1 / 16, "gate_up_proj": 1, "down_proj": 1 / 16}


def test_a_result_beyond_half_precision_is_whole() -> None:
    """Results of a product that is added to the residual stream may be as large as a million."""
    made = prompt_bundle.program("llama", "fp32")
    rows = np.zeros((1, 3, 32), np.float32)
    rows[..., 0] = 1
    values = in_pieces(made, rows, (3,), grown={"model.layers.0.mlp.down_proj.weight": 300_000.0}, until=1)
    assert np.isfinite(values[0]).all()
    assert 65504 < np.abs(values[0]).max() < 1_000_000


def test_a_decoder_that_cannot_be_cut_has_no_pieces() -> None:
    made = prompt_bundle.program("llama", "int4")
    fork = made.graph("lm", OnnxGraph).fork()
    for node in fork.model.graph:
        node.metadata_props.clear()
    with pytest.raises(PassError, match="layers: none; one row of layers is right"):
        prompt_layers(fork.model.graph, made.steps["lm"].step)
    bare = Pipeline((DeviceSteps(required=True),)).run(replace(made.with_graph("lm", fork), steps={}))
    assert bare.steps["lm"].prompt is None


def test_a_file_that_names_what_is_not_there_is_refused() -> None:
    lowering = prompt_bundle.program("llama", "int4").steps["lm"]
    assert lowering.prompt is not None
    text = dumps(lowering.prompt.pieces)
    step = replace(lowering.step, weights=dict.fromkeys(lowering.tensors, StepWeight("data", "float32", (1,), 0, 4)))
    assert PromptPieces.from_json(text, step) == lowering.prompt.pieces
    with pytest.raises(BundleError, match="version: 2, not 1; compile again"):
        PromptPieces.from_json(text.replace('"version": 1', '"version": 2'), step)
    with pytest.raises(BundleError, match="nothing gives 'v7'"):
        PromptPieces.from_json(text.replace('"v0"', '"v7"', 1), step)
    with pytest.raises(BundleError, match=r"past\.9\.key: there are 3 layers"):
        PromptPieces.from_json(text.replace("past.2.key", "past.9.key"), step)
    with pytest.raises(BundleError, match="no graph '9'"):
        PromptPieces.from_json(text.replace('"graph": "2"', '"graph": "9"'), step)


def whole(graph: OnnxGraph, ids: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The embedding's rows, and what the head reads, by the whole graph in single precision."""
    fork = graph.fork()
    main = fork.model.graph
    head = next(node for node in main if node.op_type == "Slice" and node.inputs[1].name == LOGITS_FROM)  # type: ignore[union-attr]
    rows = next(node for node in main if node.op_type.startswith("Gather")).outputs[0]
    rows = next((use.node.outputs[0] for use in rows.uses() if use.node.op_type == "Cast"), rows)
    end = head.inputs[0]
    assert end is not None
    main.outputs.extend([rows, end])
    for node in main:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)
    feeds = {
        "input_ids": ids,
        "seqlens_k": np.array([ids.shape[1] - 1], np.int32),
        "total_sequence_length": np.array(ids.shape[1], np.int32),
        LOGITS_FROM: np.array([0]),
        **tiny.empty_cache(fork, 1),
    }
    if any(value.name == "threshold" for value in main.inputs):
        feeds["threshold"] = np.full(ids.shape, -np.inf, np.float32)
    found = fork.run(feeds)
    return found[rows.name or ""], found[end.name or ""]


def in_pieces(
    made: Any,
    rows: npt.NDArray[Any],
    chunks: tuple[int, ...],
    grown: dict[str, float] | None = None,
    until: int | None = None,
) -> list[npt.NDArray[Any]]:
    """What the head reads, chunk by chunk; or the largest result of the first calls."""
    lowering, main = made.steps["lm"], made.graph("lm", OnnxGraph).model.graph
    pieces = lowering.prompt.pieces
    sessions = {
        name: FakeSession(FakeOrt(FakeCuda()), ir.to_proto(model).SerializeToString()).session
        for name, model in lowering.prompt.models.items()
    }
    stored = {name: value.const_value.numpy() for name, value in main.initializers.items()}
    weights: Arrays = {}
    for name, product in pieces.products.items():
        more = (grown or {}).get(name, 1.0)
        weights[name] = (dequantized(lowering.step.gemms[product.gemm], stored) * more * product.factor).astype(
            np.float16
        )
    start = next(call.writes[0] for call in lowering.step.body if call.kind == "lookup")
    cache = {
        past(layer, kind): np.zeros((1, 2, prompt_bundle.TOKENS, 16), np.float16)
        for layer in range(len(lowering.step.attentions))
        for kind in ("key", "value")
    }
    ends, before = [], 0
    for size in chunks:
        values: Arrays = {start: rows[:, before : before + size]}
        before += size
        own = {"seqlens_k": np.array([before - 1], np.int32), "total_sequence_length": np.array(before, np.int32)}
        for call in pieces.calls[:until]:
            specs = pieces.graphs[call.graph]
            given = {}
            for name, spec in zip(call.reads, specs.inputs, strict=True):
                found = next(each[name] for each in (own, cache, values, weights, stored) if name in each)
                given[spec.name] = found.astype(spec.dtype)
            for name, value in zip(call.writes, sessions[call.graph].run(None, given), strict=True):
                if cache_tensor(name):
                    cache[name.replace("present", "past")] = value
                else:
                    values[name] = value
        last = pieces.calls[until - 1].writes if until else pieces.ends
        ends.append(max((values[name] for name in last if name in values), key=lambda each: np.abs(each).max()))
    return ends


def dequantized(weight: Any, stored: Arrays) -> npt.NDArray[np.float32]:
    """A product's weight by NumPy, float32[results, columns]."""
    codes = stored[weight.codes]
    if weight.bits >= 16:
        return codes.astype(np.float32)
    blocks = -(-weight.columns // weight.block)
    if weight.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1)
    codes = codes.reshape(weight.results, blocks, weight.block).astype(np.float32)
    points = np.full((weight.results, blocks), 1 << weight.bits - 1, np.float32)
    if weight.zeros:
        zeros = stored[weight.zeros]
        if weight.bits == 4:
            zeros = np.stack([zeros & 15, zeros >> 4], -1)
        points = zeros.reshape(weight.results, -1)[:, :blocks].astype(np.float32)
    scales = stored[weight.scales].reshape(weight.results, blocks, 1)
    return ((codes - points[..., None]) * scales).reshape(weight.results, -1)[:, : weight.columns]
