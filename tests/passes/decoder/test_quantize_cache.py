"""quantize_cache: what is kept in fewer bits is what transformers computes with entries that were rounded alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import DynamicCache

from adaptc.compiler.cache_ranges import _turned, with_cache_ranges
from adaptc.errors import PassError
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Backbone, CacheRanges, Program
from adaptc.passes import Pipeline
from adaptc.passes.decoder.fuse_norms import FuseNorms
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.decoder.quantize_cache import QuantizeCache, scales_of
from adaptc.passes.decoder.verify_drafts import VerifyDrafts
from tests.models import drive, tiny

IDS = tiny.feeds(2, drive.PROMPT + 8, seed=5)["input_ids"]
TEXT = tiny.feeds(1, 200, seed=9)["input_ids"][0]
FAMILIES = (
    *("llama", "llama-mha", "llama-yarn", "qwen2", "qwen3", "mistral-window", "gemma2", "gemma3", "qwen2-moe"),
    *("smollm3", "cohere", "gpt2", "llama4"),
)
"""Heads are not filled up, or at their end."""


@cache
def measured(family: str) -> Program:
    """A program as the target's passes leave it, and how large its cache's entries become."""
    backbone = Backbone(family, family, tiny.VOCAB, 0, (), None, 128)
    program = Pipeline((FuseNorms(), FuseProjections())).run(tiny.cached(family))
    return with_cache_ranges(replace(program, backbones={"lm": backbone}), {"lm": TEXT})


class RoundedCache(DynamicCache):  # type: ignore[misc]
    """transformers' cache, which rounds what it is given."""

    def __init__(self, config: Any, rounded: Callable[[torch.Tensor, int, int], torch.Tensor]) -> None:
        super().__init__(config=config)
        self.rounded = rounded

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        parts = [self.rounded(each, layer_idx, kind) for kind, each in enumerate((key_states, value_states))]
        return super().update(*parts, layer_idx, *args, **kwargs)


def eager(family: str, rounded: Callable[[torch.Tensor, int, int], torch.Tensor]) -> Any:
    """transformers' logits if all that its cache holds is rounded: float32 [batch, tokens, vocab]."""
    model = tiny.model(family)
    with torch.no_grad():
        kept = RoundedCache(model.config, rounded)
        return model(torch.from_numpy(IDS), past_key_values=kept, use_cache=True).logits.numpy()


def as_codes(ranges: CacheRanges) -> Callable[[torch.Tensor, int, int], torch.Tensor]:
    def rounded(given: torch.Tensor, layer: int, kind: int) -> torch.Tensor:
        scales = torch.from_numpy(scales_of(ranges[layer][kind]))[..., : given.shape[-1]]
        return (given / scales).round().clamp(-128, 127) * scales

    return rounded


def error(actual: Any, expected: Any) -> float:
    """The largest difference, of logits that are 1 in size."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("stored", ["int8", "fp16"])
def test_golden(golden: Callable[[str, str], None], stored: Any) -> None:
    after = QuantizeCache(stored).apply(measured("llama"))
    golden(f"quantize_cache/llama-{stored}", str(after.graph("lm", OnnxGraph).text()))


@pytest.mark.parametrize("family", FAMILIES)
def test_codes_are_those_that_transformers_cache_would_hold(family: str) -> None:
    program = measured(family)
    actual = drive.logits(QuantizeCache("int8").apply(program), IDS)
    rounded, exact = eager(family, as_codes(program.cache_ranges["lm"])), tiny.eager(family, {"input_ids": IDS})
    # A value half way between two codes may go either way, so single logits differ by a part of what rounding costs.
    assert error(actual, rounded) < max(1e-4, 0.2 * error(exact, rounded))
    assert error(actual, exact) > 1e-4, "nothing was rounded"


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(family: str) -> None:
    actual = drive.logits(QuantizeCache("fp16").apply(measured(family)), IDS)
    exact = tiny.eager(family, {"input_ids": IDS})
    assert 1e-7 < error(actual, exact) < 5e-3


def test_every_tensor_of_the_cache_has_the_type() -> None:
    for stored, kind in (("int8", ir.DataType.INT8), ("fp16", ir.DataType.FLOAT16)):
        after = QuantizeCache(stored).apply(measured("llama"))  # type: ignore[arg-type]
        after.verify()
        main = after.graph("lm", OnnxGraph).model.graph
        cached = [v for v in (*main.inputs, *main.outputs) if str(v.name).startswith(("past.", "present."))]
        assert len(cached) == 12
        assert {value.dtype for value in cached} == {kind}
        assert QuantizeCache(stored).apply(after) is after  # type: ignore[arg-type]


def test_input_is_untouched() -> None:
    program = measured("llama")
    before = str(program)
    QuantizeCache().apply(program)
    QuantizeCache("fp16").apply(program)
    assert str(program) == before


def test_without_a_cache_it_is_the_same_program() -> None:
    program = tiny.lowered("llama")
    assert QuantizeCache().apply(program) is program
    assert with_cache_ranges(program, {}) is program


def test_ranges_that_nobody_measured() -> None:
    with pytest.raises(PassError, match=r"kv_cache: int8; ranges of 3 layers are needed, 0 are known"):
        QuantizeCache().apply(tiny.cached("llama"))
    with pytest.raises(PassError, match=r"kv_cache: int8; no calibration text for 'lm'"):
        with_cache_ranges(measured("llama"), {})


def test_a_range_holds_at_every_position() -> None:
    """Keys of one text, read at other positions, turn into each other and stay within their ranges."""
    program = measured("llama")
    [(keys, _), *_] = program.cache_ranges["lm"]
    shifted = with_cache_ranges(program, {"lm": np.concatenate([np.zeros(9, np.int64), TEXT])})
    [(others, _), *_] = shifted.cache_ranges["lm"]
    half = keys.shape[1] // 2
    assert np.array_equal(keys[:, :half], keys[:, half:])
    assert np.all(others >= keys * (1 - 1e-5))  # the first layer's keys are the same, but for the token in front


@pytest.mark.parametrize(
    ("keys", "pairs", "neighbours", "expected"),
    [
        ([3, 5, 6, 4, 12, 8], 3, False, [5, 13, 10, 5, 13, 10]),
        ([3, 4, 5, 12, 6, 8], 3, True, [5, 5, 13, 13, 10, 10]),
        ([3, 5, 4, -12, 6, -7], 2, False, [5, 13, 5, 13, 6, -7]),
    ],
)
def test_pairs_that_are_turned(keys: list[float], pairs: int, neighbours: bool, expected: list[float]) -> None:
    found = _turned(np.array(keys, np.float32)[None, None], pairs, neighbours=neighbours)
    assert np.allclose(found[0, 0], expected)


def test_a_channel_that_is_always_zero() -> None:
    scales = scales_of(np.array([[0.0, 127.0, 1e-3]], np.float32))
    assert scales.shape == (1, 1, 1, 3)
    assert np.allclose(scales[0, 0, 0], [1.0, 1.0, 1e-3 / 127])


def test_graphs_that_verify_keep_the_type() -> None:
    after = VerifyDrafts(sizes=(2,)).apply(QuantizeCache().apply(measured("llama")))
    after.verify()
    main = after.graph("lm.verify2", OnnxGraph).model.graph
    cached = [v for v in (*main.inputs, *main.outputs) if str(v.name).startswith(("past.", "present."))]
    assert {value.dtype for value in cached} == {ir.DataType.INT8}
