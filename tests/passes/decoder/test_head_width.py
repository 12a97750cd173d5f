"""Heads whose width the attention kernel lacks: the numbers are eager's, in a prompt and token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptc.capture.text import capture
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.ir.onnx_graph import OnnxGraph, fixed
from adaptc.ir.program import Program
from adaptc.passes import Pipeline
from adaptc.passes.decoder.fuse_norms import FuseNorms
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.decoder.head_width import padded_table, padded_width
from adaptc.passes.decoder.kv_cache import KvCache
from adaptc.passes.decoder.logits_from import LogitsFrom
from adaptc.passes.lower.lower import Lower
from adaptc.runtime import load
from adaptc.runtime.bundle.plan import Run
from adaptc.spec.reading import read_spec
from tests.close import ENGINE, assert_close
from tests.models import folder, tiny


@pytest.mark.parametrize(("family", "width"), [("llama", 2), ("gemma2", 100), ("qwen3", 24), ("mistral-window", 122)])
def test_equals_eager(family: str, width: int) -> None:
    kind, options = tiny.FAMILIES[family]
    model = tiny.random_model(kind, {**tiny.COMMON, **options, "head_dim": width, "num_hidden_layers": 2})
    captured = capture(model.config, dict(model.named_parameters(remove_duplicate=False)))
    passes = (Lower(), KvCache(max_tokens=64), LogitsFrom(), FuseNorms(), FuseProjections())
    graph = Pipeline(passes).run(Program({"lm": captured}, (Run("lm"),))).graph("lm", OnnxGraph)
    assert fixed(graph.model.graph.initializers["rope.0.cos"]) == (64, padded_width(width, 16) // 2)
    feeds = tiny.feeds(2, 12)
    ids = feeds["input_ids"]
    with torch.no_grad():
        expected = model(torch.from_numpy(ids), use_cache=False).logits.numpy()
    logits, past = tiny.step(graph, ids[:, :8])
    assert_close(logits, expected[:, :8], **ENGINE)
    for at in range(8, 12):
        logits, past = tiny.step(graph, ids[:, at : at + 1], past, before=at)
        assert_close(logits[:, 0], expected[:, at], **ENGINE)


def test_a_bundle_with_openllama_s_heads_writes_what_transformers_does(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 200, "head_dim": 100, "num_attention_heads": 2, "num_key_value_heads": 2}
    spec, model = folder.write(tmp_path, **sizes, num_hidden_layers=2)
    compile_spec(read_spec(spec), tmp_path, tmp_path / "bundle", Cache(tmp_path / "cache"))
    ids = [5, 40, 7, 90, 12]
    with load(tmp_path / "bundle", threads=1) as session:
        assert list(session.generate(ids, max_new_tokens=12, stop_token_ids=[]).ids[:12])
        written = list(session.generate(ids, max_new_tokens=12).ids)
    assert written == folder.greedy(model, ids, len(written))


def test_a_width_that_the_kernel_takes_is_left_alone() -> None:
    assert [padded_width(width, 16) for width in (2, 16, 18, 100, 128)] == [16, 16, 32, 112, 128]
    assert padded_width(100, 1) == 100
    table = padded_table(np.ones((3, 4), np.float32), 12, 0.5)
    assert table.tolist() == [[1, 1, 1, 1, 0.5, 0.5]] * 3


def test_a_target_that_takes_any_width_gets_none() -> None:
    model = tiny.model("llama")
    graph = tiny.onnx(Pipeline((KvCache(max_tokens=8, head_multiple=1),)).run(tiny.lowered("llama")))
    assert model.config.head_dim == 16
    assert not [node for node in graph.model.graph if node.op_type == "Pad"]
