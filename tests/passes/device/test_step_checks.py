"""Every size in a step's file, changed alone, is refused: kernels on a GPU rely on it and check nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from adaptc.runtime.backends.cuda.bundle_partitions import decoder_graphs
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.gpu_steps.device_step import DeviceStep, RowKernel, RowLine, RowOutput
from adaptc.runtime.bundle.gpu_steps.row_program import check_row_kernel
from adaptc.runtime.bundle.gpu_steps.step_checks import check_step
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.errors import BundleError
from tests.models import skipping, steps_bundle

TABLE = ((0.0, -math.inf), (0.1, -0.5), (0.5, 0.5))
GATES = SkipGates("learned", skipping.GATED, 3, 4, "rows", TABLE)

FREE = {"version", "window", "offset", "layer", "which", "decides", "gate", "args", "numbers", "line"}
"""Whole numbers that say something else than a size, or where one of several good answers is another good one."""


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8", "int4"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    gating = steps_bundle.gating(GATES, skipping.GPU_RANK)
    return steps_bundle.compiled(tmp_path_factory.mktemp("sizes"), "llama", request.param, gating)


def numbers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where whole numbers stand in JSON."""
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in FREE:
                yield from numbers(each, (*path, key))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield path


def put(step: Any, path: tuple[Any, ...], change: Callable[[int], int]) -> None:
    *way, last = path
    for key in way:
        step = step[key]
    step[last] = change(step[last])


def check(bundle: Bundle, step: Any) -> None:
    [spec] = decoder_graphs(bundle).values()
    check_step(DeviceStep.from_json(json.dumps(step)), spec)


def test_what_was_compiled_fits(bundle: Bundle) -> None:
    check(bundle, json.loads(bundle.read("steps/lm.json")))


@pytest.mark.parametrize(
    "change",
    [lambda size: 2 * size + 1, lambda size: size + 8, lambda size: size // 2, lambda size: -size - 1],
    ids=["double", "more", "half", "negative"],
)
def test_every_size_is_checked(bundle: Bundle, change: Callable[[int], int]) -> None:
    text = bundle.read("steps/lm.json")
    paths = list(numbers(json.loads(text)))
    assert len(paths) > 200
    passed = []
    for path in paths:
        step = json.loads(text)
        put(step, path, change)
        try:
            check(bundle, step)
        except BundleError as error:
            assert str(error).endswith(("; compile again", "is needed"))  # noqa: PT017
        else:
            passed.append(path)
    # A leader of no gate is 0, and half of it is 0 too.
    zeros = {path for path in paths if change(_at(json.loads(text), path)) == _at(json.loads(text), path)}
    assert set(passed) <= zeros


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def call_of(step: Any, kind: str) -> Any:
    return next(call for call in step["body"] if call["kind"] == kind)


ORDERS: dict[str, tuple[Callable[[Any], object], str]] = {
    "read before it is written": (lambda s: s["body"].reverse(), r"call 0 .*(read before it is written|not decided)"),
    "a product of a float32 value": (
        lambda s: call_of(s, "gemm").update(reads=call_of(s, "lookup")["writes"]),
        r"call \d+ \(gemm \d+\): 'v\d+' is not float16\[32\]",
    ),
    "token ids as numbers": (
        lambda s: call_of(s, "rows")["reads"].__setitem__(0, "input_ids"),
        r"call \d+ \(rows \d+\): 'input_ids' is not float32\[32\]",
    ),
    "numbers as token ids": (
        lambda s: s["body"].append({**call_of(s, "lookup"), "reads": call_of(s, "lookup")["writes"]}),
        r"call \d+ \(lookup 0\): 'v\d+' in the place of token ids",
    ),
    "one value too few": (lambda s: call_of(s, "attention").update(reads=[]), "it reads 0 values, not [13]"),
    "a gate that nothing decides": (
        lambda s: [call.update(decides=None) for call in s["body"]],
        r"gate \d+ has not decided",
    ),
    "a product that decides": (lambda s: call_of(s, "gemm").update(decides=0), "it decides gate 0"),
    "a weight as it is not stored": (
        lambda s: s["weights"][s["gemms"][0]["codes"]].update(dtype="object"),
        "dtype 'object'",
    ),
    "no result": (lambda s: s.update(result="hidden"), "hidden: the decoder has one part"),
}


@pytest.mark.parametrize("name", ORDERS)
def test_calls_are_checked(bundle: Bundle, name: str) -> None:
    change, message = ORDERS[name]
    step = json.loads(bundle.read("steps/lm.json"))
    change(step)
    with pytest.raises(BundleError, match=message):
        check(bundle, step)


def test_an_expression_without_end_is_refused() -> None:
    lines = [RowLine("input", (0,), (), 8)]
    lines += [RowLine("add", (index, index), (), 8) for index in range(60)]
    kernel = RowKernel((RowOutput(0, "float32"),), (), tuple(lines), (RowOutput(60, "float32"),))
    with pytest.raises(BundleError, match=r"^rows: line 12 has over 4096 terms; compile again$"):
        check_row_kernel("rows", kernel)
