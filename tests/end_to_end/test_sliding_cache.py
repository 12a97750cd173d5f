"""Layers that attend over a window keep its size of a text: bundles answer as with caches of all positions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from adaptc import runtime
from adaptc.compiler import pipeline
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.passes.decoder.sliding_cache import SlidingCache
from adaptc.report.page import kv_bytes
from adaptc.runtime.bundle.folder import Bundle
from adaptc.spec.reading import read_spec
from tests.models import folder, stitched

MAX_TOKENS, SLACK, ALL = 400, 32, 1 << 20
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3_text", {"sliding_window": 5, "layer_types": KINDS, "query_pre_attn_scalar": 16}),
    "mistral": ("mistral", {"sliding_window": 7}),  # no layer keeps all
}
CASES = {"gemma3": "fp32", "gemma3-int8": "int8", "mistral": "fp32", "mistral-fp16": "fp16"}
IDS = np.random.default_rng(0).integers(2, 300, MAX_TOKENS).tolist()
PROMPTS = [IDS[:300], IDS[7:10], IDS[20:150], [7, 8, 9, 10] * 30, IDS[90:91]]


def compiled(base: Path, spec: Path, name: str, slack: int, *overrides: str) -> Bundle:
    """A bundle whose caches have so much room beyond windows; with a lot, they hold all positions."""
    with mock.patch.object(pipeline, "SlidingCache", partial(SlidingCache, slack=slack)):
        found = read_spec(spec, [f"target.max_tokens={MAX_TOKENS}", "target.batch=4", *overrides])
        return compile_spec(found, base, base / name, Cache(base / f"cache-{slack}")).bundle


Made = tuple[Bundle, Bundle, Any]


@pytest.fixture(scope="module", params=list(CASES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle with small caches, one with caches of all positions, and transformers' model."""
    base = tmp_path_factory.mktemp(request.param)
    family, options = MODELS[request.param.partition("-")[0]]
    spec, model = folder.write(base, family, max_position_embeddings=2048, **options)
    kind = f"target.kv_cache={CASES[request.param]}"
    return compiled(base, spec, "small", SLACK, kind), compiled(base, spec, "whole", ALL, kind), model


def test_memory(made: Made) -> None:
    small, whole, model = made
    window = model.config.sliding_window
    held = window + 64 + SLACK
    kinds = getattr(model.config, "layer_types", None) or ["sliding_attention"] * 3
    sliding = kinds.count("sliding_attention")
    assert small.manifest.graphs["lm"].decoder is not None
    assert kv_bytes(small.manifest) * 3 * MAX_TOKENS == kv_bytes(whole.manifest) * (
        sliding * held + (3 - sliding) * MAX_TOKENS
    )


def test_scores_are_those_of_transformers(made: Made) -> None:
    small, whole, model = made
    values = []
    for bundle in (small, whole):
        with runtime.load(bundle.path, threads=1) as session:
            values.append(np.array(session.score(IDS).values))
    expected = folder.scores(model, IDS)
    lost = np.abs(values[1] - expected).max()  # by codes or half precision alone
    np.testing.assert_allclose(values[0], values[1], atol=1e-5)
    assert np.abs(values[0] - expected).max() <= lost + 1e-5 < 0.5


def test_a_window_that_is_left_too_early_is_seen(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: what moves a cache and does not say so changes what follows."""
    small, _, model = made
    monkeypatch.setattr("adaptc.runtime.backends.host.window_slots.WindowSlots._keep_from", lambda *_: None)
    monkeypatch.setattr("adaptc.runtime.bundle.cache_window.CacheWindow.piece", 8)
    with runtime.load(small.path, threads=1) as session, pytest.raises((AssertionError, runtime.EngineError)):
        np.testing.assert_allclose(session.score(IDS).values, folder.scores(model, IDS), atol=0.2)


def test_written_texts(made: Made) -> None:
    """Alone, together with others, in slots that move, and after what is known of earlier texts."""
    small, whole, _ = made
    with runtime.load(whole.path, threads=1, batch=1, prefix_bytes=0, speculate="off") as session:
        expected = [session.generate(prompt, max_new_tokens=95).ids for prompt in PROMPTS]
    with runtime.load(small.path, threads=1, batch=1, prefix_bytes=0, speculate="off", chunk=20) as session:
        assert [session.generate(prompt, max_new_tokens=95).ids for prompt in PROMPTS] == expected
    with runtime.load(small.path, threads=1, batch=4, speculate="off") as session:
        assert [each.ids for each in session.generate(PROMPTS, max_new_tokens=95)] == expected
        again = [session.generate(prompt, max_new_tokens=95) for prompt in PROMPTS]
        assert [each.ids for each in again] == expected
        assert [each.trace.cached_tokens for each in again] == [288, 0, 128, 112, 0]


def test_texts_go_on_from_what_is_known(made: Made) -> None:
    small, whole, _ = made
    with (
        runtime.load(whole.path, threads=1, prefix_bytes=0) as fresh,
        runtime.load(small.path, threads=1) as session,
    ):
        written = list(session.generate(PROMPTS[2], max_new_tokens=120).ids)
        text = [*PROMPTS[2], *written]
        for end in (len(text), 200, 150, 100):  # from where it ended; from within what it wrote; from its prompt
            follow = session.generate([*text[:end], 5, 6, 7], max_new_tokens=60)
            assert follow.ids == fresh.generate([*text[:end], 5, 6, 7], max_new_tokens=60).ids
            assert follow.trace.cached_tokens >= min(end, len(PROMPTS[2])) // 16 * 16


def test_drafted_tokens_are_taken_back(made: Made) -> None:
    small, whole, _ = made
    prompt = [7, 8, 9, 10] * 30
    with runtime.load(whole.path, threads=1, speculate="off") as session:
        expected = session.generate(prompt, max_new_tokens=250).ids
    with runtime.load(small.path, threads=1, speculate="lookup") as session:
        assert session.generate(prompt, max_new_tokens=250).ids == expected


def test_routes_keep_all_positions(tmp_path: Path) -> None:
    stitched.write(tmp_path)
    bundle = compiled(tmp_path, tmp_path / "model.yaml", "stitched", SLACK)
    assert all(not graph.decoder.windows for graph in bundle.manifest.graphs.values() if graph.decoder)
