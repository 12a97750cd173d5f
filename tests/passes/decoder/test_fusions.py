"""fuse_norms, fuse_projections, logits_from and float_weights; test_every_pass.py holds their numbers against eager."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from adaptc.ir.program import Program
from adaptc.passes import Pass, Pipeline
from adaptc.passes.decoder.fuse_norms import FuseNorms
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.decoder.kv_cache import KvCache
from adaptc.passes.decoder.logits_from import LogitsFrom
from adaptc.passes.quantize.float_weights import FloatWeights
from tests.close import ENGINE, assert_close
from tests.models import tiny

PASSES: tuple[Pass, ...] = (FuseNorms(), FuseProjections(), FloatWeights())


def operators(program: Program) -> Counter[str]:
    return Counter(node.op_type for node in tiny.onnx(program).model.graph)


@pytest.mark.parametrize("pass_", PASSES, ids=lambda p: p.name)
def test_golden(pass_: Pass, golden: Callable[[str, str], None]) -> None:
    golden(f"{pass_.name}/llama", str(Pipeline((pass_,)).run(tiny.cached("llama"))))


def test_golden_of_logits_from(golden: Callable[[str, str], None]) -> None:
    cached = Pipeline((KvCache(max_tokens=64),)).run(tiny.lowered("llama"))
    golden("logits_from/llama", str(Pipeline((LogitsFrom(),)).run(cached)))


@pytest.mark.parametrize("pass_", PASSES, ids=lambda p: p.name)
def test_input_is_untouched_and_weights_are_shared(pass_: Pass) -> None:
    program = tiny.cached("qwen2")
    before = str(program)
    after = pass_.apply(program)
    assert str(program) == before
    assert after is not program
    old, new = (tiny.onnx(p).model.graph.initializers for p in (program, after))
    shared = [name for name in old if name in new]
    assert len(shared) > 10
    assert all(new[name].const_value is old[name].const_value for name in shared)


@pytest.mark.parametrize("pass_", [*PASSES, LogitsFrom()], ids=lambda p: p.name)
def test_no_match_returns_the_same_program(pass_: Pass) -> None:
    program = Pipeline(PASSES).run(tiny.cached("llama"))
    assert pass_.apply(program) is program


def test_norms_take_up_the_residual_adds() -> None:
    before, after = tiny.cached("llama"), Pipeline((FuseNorms(),)).run(tiny.cached("llama"))
    assert operators(before)["Add"] == 6
    assert operators(after)["Add"] == 0
    assert operators(after)["SkipSimplifiedLayerNormalization"] == 6


def test_one_matrix_for_query_key_and_value_and_one_for_gate_and_up() -> None:
    before, after = tiny.cached("qwen2"), Pipeline((FuseProjections(),)).run(tiny.cached("qwen2"))
    assert operators(before)["MatMul"] - operators(after)["MatMul"] == 3 * (2 + 1)
    weights = tiny.onnx(after).model.graph.initializers
    assert list(weights["model.layers.1.self_attn.qkv_proj.weight"].shape or ()) == [64 + 2 * 32, 32]
    assert list(weights["model.layers.1.self_attn.qkv_proj.bias"].shape or ()) == [128]
    assert "model.layers.1.self_attn.q_proj.weight" not in weights


def test_gate_up_can_be_left_apart() -> None:
    after = Pipeline((FuseProjections(gate_up=False),)).run(tiny.cached("llama"))
    assert operators(after)["Split"] == 0


def test_query_norms_keep_query_key_and_value_apart() -> None:
    after = Pipeline((FuseProjections(),)).run(tiny.cached("qwen3"))
    assert "model.layers.0.self_attn.q_proj.weight" in tiny.onnx(after).model.graph.initializers


def test_logits_only_from_where_they_are_asked_for() -> None:
    graph = tiny.onnx(tiny.cached("gemma2"))
    feeds = tiny.feeds(2, 9)
    whole, past = tiny.step(graph, feeds["input_ids"])
    last = graph.run(
        {
            "input_ids": feeds["input_ids"],
            "seqlens_k": np.full(2, 8, np.int32),
            "total_sequence_length": np.array(9, np.int32),
            "logits_from": np.array([8]),
            **{name: np.zeros_like(value) for name, value in past.items()},
        }
    )["logits"].astype(np.float32)
    assert last.shape == (2, 1, tiny.VOCAB)
    assert_close(last, whole[:, 8:], **ENGINE)


def test_fp16_rounds_weights_and_halves_them() -> None:
    wide, narrow = (Pipeline((FloatWeights(w),)).run(tiny.cached("llama-tied")) for w in ("fp32", "fp16"))
    feeds = tiny.feeds(1, 7)
    a, b = (tiny.step(tiny.onnx(p), feeds["input_ids"])[0] for p in (wide, narrow))
    assert not (a == b).all()
    assert_close(b, a, rtol=1e-2, atol=1e-2)
    assert _bytes(narrow) < 0.65 * _bytes(wide)


def _bytes(program: Program) -> int:
    weights = tiny.onnx(program).model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in weights if value.const_value is not None)
