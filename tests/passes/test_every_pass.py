"""Every pass on every family keeps the numbers: after each one, the program is held against transformers.

The passes and their order are those that `plan_of` gives for a spec, so a pass that is added to a target is tested here
without a line of its own. What a single pass promises beyond this (its text, refusals, options) is in its own file.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from adaptc.compiler.pipeline import plan_of
from adaptc.errors import PassError
from adaptc.ir.program import Backbone, Program
from adaptc.passes import PASSES, Pass, Pipeline
from adaptc.spec.reading import parse_spec
from tests.close import ENGINE, HALF, assert_close
from tests.models import drive, tiny

IDS = tiny.feeds(2, drive.PROMPT + 2, seed=5)["input_ids"]
GATES = "{skip_ffn: {policy: static, layers: [1, 2], warmup: 0}}"
TARGETS = {
    "fp32": ("weights: fp32", False),
    "fp16": ("weights: fp16", True),
    "int8": ("weights: int8", False),
    "int4": ("weights: int4", True),
    "tensorrt": ("backend: tensorrt", True),
}
"""By name, a spec's target, and whether blocks of the model have gates: with every block run they are the model."""

EXPERTS = {
    "mixtral": "int8",
    "qwen2-moe": "int4",
    "qwen3-moe": "fp32",
    "granite-moe": "fp16",
    "llama4": "int4",
    "llama4-interleaved": "fp16",
    "olmoe": "int8",
}
"""Of families with experts, a target each; TensorRT has no form of them."""
CASES = [
    *((family, target) for family in tiny.FIRST for target in TARGETS),
    *((family, "int4") for family in tiny.OTHERWISE),
    *EXPERTS.items(),
]
"""Passes before `quantize` are held to float32's bounds for int4 too."""

NEAR = {"fp16": 1e-5, "int8": 0.006, "int4": 0.3}
"""Largest mean KL, nats a token, that weights in fewer bits may cost; over all families 1.6e-6, 0.0023 and 0.245 were
seen."""

OTHERS = {
    *("stitch", "drop_modality", "draft_with", "quantize_cache", "source_codes", "sliding_cache"),
    "encoder_attention",
}
"""Passes of encoders, over several models or modalities, or of what a source has or a compile measures; their own tests
hold them against eager."""


def gates(family: str, target: str) -> bool:
    """Whether blocks of this model have gates for this target."""
    return TARGETS[target][1] and family in tiny.WITH_GATES


def passes(target: str, gated: bool) -> tuple[Pass, ...]:
    """The passes of a spec for this target."""
    yaml, _ = TARGETS[target]
    text = (
        "version: 1\nmodels: {lm: {source: none}}\n"
        f"passes: [{GATES if gated else ''}]\ntarget: {{{yaml}, max_tokens: 64, block_size: 16}}\n"
    )
    return plan_of(parse_spec(text), Path()).passes


@cache
def program(family: str) -> Program:
    """A captured model with a text for passes that measure."""
    backbone = Backbone(family, family, tiny.VOCAB, 0, (), None, 128)
    ids = tiny.feeds(1, 200, seed=9)["input_ids"][0]
    return replace(tiny.program(family), samples={"lm": ids}, backbones={"lm": backbone})


def kl(actual: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Mean KL of predictions, nats a token."""
    true, other = (_log_softmax(values.astype(np.float64)) for values in (expected, actual))
    return float((np.exp(true) * (true - other)).sum(-1).mean())


def _log_softmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = values - values.max(-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def check(
    after: Program, expected: npt.NDArray[np.float32], target: str, threshold: float, *, narrow: bool, half: bool
) -> None:
    """Hold a program's logits against what they should be, as closely as its arithmetic allows."""
    logits = drive.logits(after, IDS, threshold)
    if half:
        scale = np.abs(expected).max()
        assert_close(logits / scale, expected / scale, **HALF)
    elif narrow:
        assert np.isfinite(logits).all()
        assert kl(logits, expected) < NEAR[target]
    else:
        assert_close(logits, expected, **ENGINE)


@pytest.mark.parametrize(("family", "target"), CASES)
def test_every_pass_keeps_the_numbers(family: str, target: str) -> None:
    expected = {-np.inf: tiny.eager(family, {"input_ids": IDS})}
    after, changed = program(family), list[str]()
    gated = gates(family, target)
    for pass_ in passes(target, gated):
        before, after = after, Pipeline((pass_,)).run(after)
        if after is before:
            continue
        changed.append(pass_.name)
        if pass_.name == "skip_ffn":  # the captured graph says what skipped blocks leave
            expected[np.inf] = drive.logits(after, IDS, np.inf)
            assert np.abs(expected[np.inf] - expected[-np.inf]).max() > 0.02  # Cohere scales its logits down
        narrow = bool({"float_weights", "quantize"} & set(changed)) and target in NEAR
        for threshold, logits in expected.items():
            check(after, logits, target, threshold, narrow=narrow, half="legalize" in changed)
    assert len(expected) == 1 + gated
    assert ("branch" in changed or "partition" in changed) >= gated
    assert {"lower", "kv_cache"} <= set(changed)


def test_tensorrt_has_no_form_of_experts() -> None:
    with pytest.raises(PassError, match=r"layers\.0\.mlp\.experts: TensorRT has no form of experts; backend: onnx"):
        Pipeline(passes("tensorrt", gated=False)).run(program("qwen3-moe"))
    assert EXPERTS.keys() == set(tiny.WITH_EXPERTS)


def test_every_pass_is_among_those_tested() -> None:
    tested = {pass_.name for target, (_, gated) in TARGETS.items() for pass_ in passes(target, gated)}
    assert tested | OTHERS == set(PASSES)


def test_the_measure_sees_a_wrong_graph() -> None:
    """A negative control: another family's logits are far off by every measure used here."""
    ours, others = (tiny.eager(family, {"input_ids": IDS}) for family in ("llama", "qwen2"))
    assert kl(ours, others) > 1.2 * max(NEAR.values())
    with pytest.raises(AssertionError):
        assert_close(ours / np.abs(others).max(), others / np.abs(others).max(), **HALF)
