"""A backend is one folder and one entry in the table: bundles of an engine in NumPy run through `load`."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from adaptc.runtime import BundleError, DecoderSpec, EngineError, ModalSession, TensorSpec, load, load_modal
from adaptc.runtime.bundle.folder import write_bundle
from adaptc.runtime.bundle.manifest import (
    GraphSpec,
    Manifest,
    ModalitySpec,
    ModalSpec,
    SubsetSpec,
    TargetRecord,
)
from adaptc.runtime.bundle.plan import Run
from adaptc.runtime.loading import BACKENDS
from tests.models.attention_lm import AttentionLm
from tests.models.numpy_engine.backend import NumpyBackend

LM = AttentionLm()
WITH_NUMPY = {**BACKENDS, "numpy": NumpyBackend()}
PROMPTS = [np.random.default_rng(n).integers(0, LM.vocab, n).tolist() for n in (5, 20, 1, 33, 8)]


def write(into: Path, graph: GraphSpec, weights: Mapping[str, npt.NDArray[Any]], **also: Any) -> Path:
    content = io.BytesIO()
    np.savez(content, **cast("dict[str, Any]", weights))
    manifest = Manifest(
        adaptc="0",
        models={},
        passes=(),
        plan=(Run("graph"),),
        graphs={"graph": graph},
        gates={},
        target=TargetRecord("numpy", "fp32", LM.max_tokens, 2),
        versions={},
        bytes_per_token=0,
        **also,
    )
    write_bundle(into, {graph.file: content.getvalue()}, manifest)
    return into


def decoder_bundle(into: Path) -> Path:
    spec = DecoderSpec(LM.vocab, LM.max_tokens, ((LM.kv_heads, LM.head_dim),) * LM.layers, None, (), None)
    cache = ("batch", LM.kv_heads, LM.max_tokens, LM.head_dim)
    names = [f"{layer}.{kind}" for layer in range(LM.layers) for kind in ("key", "value")]
    inputs = (
        TensorSpec("input_ids", "int64", ("batch", "tokens")),
        TensorSpec("seqlens_k", "int32", ("batch",)),
        TensorSpec("total_sequence_length", "int32", ()),
        TensorSpec("logits_from", "int64", (1,)),
        *(TensorSpec(f"past.{name}", "float32", cache) for name in names),
    )
    outputs = (
        TensorSpec("logits", "float32", ("batch", "kept", LM.vocab)),
        *(TensorSpec(f"present.{name}", "float32", cache) for name in names),
    )
    return write(into, GraphSpec("graphs/lm.npz", inputs, outputs, (), spec), LM.weights)


def greedy(prompt: list[int], count: int) -> tuple[int, ...]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(LM.logits(np.array(ids))[-1].argmax()))
    return tuple(ids[len(prompt) :])


def test_a_decoder_in_numpy_writes_what_the_model_does(tmp_path: Path) -> None:
    with load(decoder_bundle(tmp_path / "bundle"), chunk=6, backends=WITH_NUMPY) as session:
        results = session.generate(PROMPTS, max_new_tokens=10)
        scores = session.score(PROMPTS[3]).values
    assert [result.ids for result in results] == [greedy(prompt, 10) for prompt in PROMPTS]
    logits = LM.logits(np.array(PROMPTS[3])).astype(np.float64)[:-1]
    expected = logits[np.arange(len(logits)), PROMPTS[3][1:]] - np.log(np.exp(logits).sum(axis=1))
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_a_dense_graph_in_numpy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in (("0.w", (3, 5)), ("0.b", (5,)), ("1.w", (5, 2)), ("1.b", (2,)))
    }
    tensors = [(TensorSpec(name, "float32", ("batch", width)),) for name, width in (("x", 3), ("y", 2))]
    graph = GraphSpec("graphs/mlp.npz", tensors[0], tensors[1], (), None)
    modal = ModalSpec({"x": ModalitySpec(("x",), None, ("x",))}, (SubsetSpec(("x",), "graph"),))
    path = write(tmp_path / "bundle", graph, weights, modal={"m": modal})
    x = rng.normal(size=(4, 3)).astype(np.float32)
    hidden = np.maximum(x @ weights["0.w"] + weights["0.b"], 0)
    expected = np.maximum(hidden @ weights["1.w"] + weights["1.b"], 0)
    with cast("ModalSession", load(path, backends=WITH_NUMPY)) as session:
        np.testing.assert_allclose(session.infer({"x": x}).outputs["y"], expected, rtol=1e-6)
    with load_modal(path, backends=WITH_NUMPY) as session:
        np.testing.assert_allclose(session.infer({"x": x[0]}).outputs["y"], expected[:1], rtol=1e-6)


def test_a_bundle_without_its_backend_is_refused(tmp_path: Path) -> None:
    path = decoder_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="compiled for 'numpy'"):
        load(path)


def test_a_graph_of_another_form_is_refused(tmp_path: Path) -> None:
    path = decoder_bundle(tmp_path / "bundle")
    (path / "graphs/lm.npz").write_bytes(b"0" * (path / "graphs/lm.npz").stat().st_size)
    with pytest.raises(EngineError, match=r"lm\.npz: not a graph for NumPy"):
        load(path, verify=False, backends=WITH_NUMPY)
