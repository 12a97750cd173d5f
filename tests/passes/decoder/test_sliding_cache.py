"""sliding_cache: layers over a window hold the newest positions; numbers are those of a cache of all positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from adaptc.ir.decoder_spec import decoder_spec
from adaptc.ir.onnx_graph import OnnxGraph, sizes
from adaptc.ir.program import Program
from adaptc.passes import Pipeline
from adaptc.passes.base import Pass
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.decoder.quantize_cache import QuantizeCache
from adaptc.passes.decoder.sliding_cache import SlidingCache
from adaptc.passes.decoder.verify_drafts import VerifyDrafts
from adaptc.runtime.backends.host.verifying import VerifyingDecoder
from adaptc.runtime.bundle.cache_window import ROLLBACK, CacheWindow
from adaptc.runtime.bundle.plan import Run, Switch
from tests.close import ENGINE, assert_close
from tests.models import tiny
from tests.models.drafts import BACKBONE, compared, verifying

MAX_TOKENS, SLACK, WINDOW = 240, 32, 5
HELD = WINDOW + ROLLBACK + SLACK
IDS = np.random.default_rng(2).integers(2, tiny.VOCAB, (1, MAX_TOKENS))
FAMILIES = ("mistral-window", "gemma2", "gemma3", "phi3-partial", "cohere2")
"""A window in each layer and in some; RoPE of two kinds, of a part of a head, and of neighbours."""


@cache
def cached(family: str) -> Program:
    return tiny.cached(family, MAX_TOKENS)


@contextmanager
def decoding(program: Program, folder: Path, *passes: Pass, batch: int = 1) -> Iterator[VerifyingDecoder]:
    with verifying(Pipeline((FuseProjections(), *passes, VerifyDrafts())).run(program), folder, batch) as decoder:
        yield decoder


def scores(decoder: VerifyingDecoder) -> Any:
    return np.concatenate([*decoder.score(IDS[0], 64)])


def test_golden(golden: Callable[[str, str], None]) -> None:
    after = SlidingCache(SLACK).apply(cached("gemma2"))
    golden("sliding_cache/gemma2", str(after.graph("lm", OnnxGraph).text()))


def test_a_graph_says_which_layers_hold_what() -> None:
    after = SlidingCache(SLACK).apply(cached("gemma3"))
    after.verify()
    spec = decoder_spec(after.graph("lm", OnnxGraph), BACKBONE)
    assert spec is not None
    assert spec.windows == (CacheWindow((0, 1, 2, 3, 4, 6), WINDOW, HELD),)
    assert spec.max_tokens == MAX_TOKENS
    assert spec.positions == (*[HELD] * 5, MAX_TOKENS, HELD)
    shapes = {value.name: sizes(value) for value in after.graph("lm", OnnxGraph).model.graph.inputs}
    assert [shapes[f"past.{layer}.key"][2] for layer in range(7)] == [*spec.positions]
    assert replace(spec, windows=()) == decoder_spec(cached("gemma3").graph("lm", OnnxGraph), BACKBONE)


@pytest.mark.parametrize("family", FAMILIES)
def test_long_texts_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    expected = tiny.eager(family, {"input_ids": IDS})[0]
    with decoding(cached(family), tmp_path, SlidingCache(SLACK), batch=2) as decoder:
        assert decoder.kv.arrays[0, "key"].shape[2] == HELD
        assert_close(scores(decoder), expected, **ENGINE)
        decoder.prefill(0, IDS[0, :20])  # and as steps, beside another text
        decoder.prefill(1, IDS[0, 3:100])
        for at in range(20, MAX_TOKENS - 90):
            logits = decoder.decode([int(IDS[0, at]), int(IDS[0, 80 + at])])
            assert_close(logits[0], expected[at], **ENGINE)
        decoder.move(0, 1)
        decoder.move(1, 0)
        for at in range(MAX_TOKENS - 90, MAX_TOKENS):
            assert_close(decoder.decode([int(IDS[0, at])])[0], expected[at], **ENGINE)


def test_what_is_outside_the_window_does_not_count_and_what_is_inside_does(tmp_path: Path) -> None:
    """The negative control: a window that is one narrower is another model."""
    graph = cached("mistral-window").graph("lm", OnnxGraph).fork()
    for node in graph.model.graph:
        if node.op_type == "GroupQueryAttention":
            node.attributes.add(ir.AttrInt64("local_window_size", WINDOW - 1))
    with decoding(cached("mistral-window").with_graph("lm", graph), tmp_path, SlidingCache(SLACK)) as decoder:
        found = scores(decoder)
    with pytest.raises(AssertionError):
        assert_close(found, tiny.eager("mistral-window", {"input_ids": IDS})[0], **ENGINE)


@pytest.mark.parametrize("family", ["gemma3", "mistral-window"])
@pytest.mark.parametrize("stored", ["fp16", "int8"])
def test_fewer_bits(family: str, stored: Any, tmp_path: Path) -> None:
    """The bits that a cache of all positions gives."""
    program = cached(family)
    spec = decoder_spec(program.graph("lm", OnnxGraph), BACKBONE)
    assert spec is not None
    ranges = [(np.full(size, 3, np.float32), np.full(size, 2, np.float32)) for size in spec.kv]
    program = replace(program, cache_ranges={"lm": ranges})
    found = []
    for name, passes in (("all", ()), ("windows", (SlidingCache(SLACK),))):
        (tmp_path / name).mkdir()
        with decoding(program, tmp_path / name, QuantizeCache(stored), *passes) as decoder:
            decoder.prefill(0, IDS[0, :150])
            found.append(np.stack([decoder.decode([int(token)])[0].copy() for token in IDS[0, 150:]]))
    assert_close(found[1], found[0], atol=1e-5)


@pytest.mark.parametrize("prompt", [40, 150, 200])
def test_runs_of_drafts_leave_what_steps_leave(prompt: int, tmp_path: Path) -> None:
    """Also where a step between moved the cache, and tokens before that were taken off again."""
    ids = [int(token) for token in IDS[0]]
    with decoding(cached("gemma3"), tmp_path, SlidingCache(SLACK)) as decoder:
        runs = compared(decoder, ids[: prompt + 8], prompt=prompt)
        assert len(runs) == 8
        assert max(run.widest for run in runs) <= 1e-5
        assert all(run.same_cache for run in runs)
        for start in range(prompt, MAX_TOKENS - 8):
            decoder.verify(0, ids[start : start + 8])
            decoder.rewind(0, start + 1)
        assert_close(decoder.decode(ids[-8:-7])[0], tiny.eager("gemma3", {"input_ids": IDS})[0][-8], **ENGINE)


def test_the_input_is_untouched_and_what_holds_all_anyway_stays() -> None:
    program = cached("gemma3")
    before = str(program)
    after = SlidingCache(SLACK).apply(program)
    assert str(program) == before
    assert SlidingCache(SLACK).apply(after) is after
    for same in (tiny.program("gemma3"), cached("llama"), VerifyDrafts().apply(cached("llama"))):
        assert SlidingCache(SLACK).apply(same) is same
    assert SlidingCache(256).apply(program) is program  # the caches would hold max_tokens
    assert SlidingCache().apply(program) is program


def test_what_may_be_set_back_further_stays() -> None:
    program = cached("gemma3")
    drafting = replace(program, draft="lm")
    assert SlidingCache(SLACK).apply(drafting) is drafting
    routed = replace(program, plan=(Run("lm"), Switch("route", {"a": "lm"}, None)))
    assert SlidingCache(SLACK).apply(routed) is routed
