"""The kernels against NumPy, and the compiler's word that they are CUDA C."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from adaptc.runtime.backends.cuda.driver.nvrtc import cubin
from adaptc.runtime.backends.cuda.kernels.step_kernels import NAMES, step_source
from adaptc.runtime.backends.cuda.step_control import CHOICE
from adaptc.runtime.text.sampling import Sampler, Sampling
from tests.fakes import cpu_kernels

POINTER, INT = ctypes.c_void_p, ctypes.c_int
VOCAB, PARTS = 997, 8


@pytest.mark.parametrize("sm", [80, 90, 120])
def test_nvrtc_compiles_them(sm: int) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    assert cubin(step_source(), sm).startswith(b"\x7fELF")
    assert all(f"void {name}(" in step_source().text for name in NAMES)


class Fixed:
    """A generator that gives one number."""

    def __init__(self, point: float) -> None:
        self.point = point

    def random(self) -> float:
        return self.point


def choose(logits: npt.NDArray[np.float32], how: Sampling, point: float) -> int:
    """The token that the kernels choose."""
    values, places = np.zeros(PARTS, np.float32), np.zeros(PARTS, np.int32)
    state, ids, told = np.array([1, 0, 0, 0], np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32)
    ran, ran_told, points = np.zeros(1, np.uint8), np.zeros(1, np.uint8), np.array([point], np.float32)
    choices = np.array([(how.temperature, how.top_k, how.top_p, how.min_p)], CHOICE)

    def at(array: npt.NDArray[Any]) -> tuple[int, Any]:
        return array.ctypes.data, POINTER

    scratch = [at(values), at(places)]
    cpu_kernels.run(step_source(), "highest", (PARTS, 1), 4, [at(logits), (VOCAB, INT), *scratch])
    rows = np.zeros(1, np.int32)
    given = [at(choices), at(points), at(state), at(ids), at(told), at(ran), at(ran_told), at(rows)]
    args = [at(logits), (VOCAB, INT), *scratch, (PARTS, INT), *given, (0, INT), (1, INT)]
    cpu_kernels.run(step_source(), "choose", (1, 1), 4, args)
    assert ids[0] == max(told[0], 0)
    return int(told[0])


@pytest.mark.parametrize(
    "how",
    [
        Sampling(),
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_k=10),
        Sampling(temperature=1.3, top_p=0.8),
        Sampling(temperature=1.0, min_p=0.1),
        Sampling(temperature=0.9, top_k=50, top_p=0.9, min_p=0.02),
    ],
    ids=str,
)
def test_tokens_are_chosen_as_on_a_cpu(how: Sampling) -> None:
    random = np.random.default_rng(1)
    for point in (0.0, 0.1, 0.35, 0.6, 0.85, 0.999):
        logits = (random.standard_normal(VOCAB) * 3).astype(np.float32)
        point = float(np.float32(point))
        expected = Sampler(how, [], Fixed(point))(logits.copy())  # type: ignore[arg-type]
        assert choose(logits, how, point) == expected


def test_the_first_of_equals_is_the_highest() -> None:
    logits = np.zeros(VOCAB, np.float32)
    logits[[700, 300, 800]] = 5
    assert choose(logits, Sampling(), 0.0) == 300


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_number_is_no_token(bad: float) -> None:
    logits = np.zeros(VOCAB, np.float32)
    logits[500] = bad
    assert choose(logits, Sampling(temperature=1.0), 0.5) == -1


def test_a_gate_decides_for_all_rows() -> None:
    thresholds = np.array([0.5, np.inf], np.float32)  # the second row is not written
    for logit, expected in ((0.6, 1), (0.4, 0)):
        logits, ran = np.array([logit, 9.0], np.float32), np.full(1, 7, np.uint8)
        result = np.ones(6, np.float32)
        args = [(0, ctypes.c_uint64), (logits.ctypes.data, POINTER), (2, INT), (thresholds.ctypes.data, POINTER)]
        args += [(2, INT), (ran.ctypes.data, POINTER), (result.ctypes.data, POINTER), (6, INT)]
        cpu_kernels.run(step_source(), "decide", (1, 1), 4, args)
        assert ran[0] == expected
        assert result.tolist() == [float(expected)] * 6


def test_states_are_kept_at_their_positions_and_taken_by_the_rows_of_a_tail() -> None:
    """Two of three rows are written; a tail has them in another order."""
    width, max_tokens = 5, 4
    hidden, states = np.arange(15, dtype=np.float32).reshape(3, width), np.zeros((3, max_tokens, width), np.float32)
    positions, state = np.array([2, 0, 1], np.int32), np.array([2, 0, 0, 1], np.int32)
    ran, told = np.array([1, 0], np.uint8), np.full((2, 2), 7, np.uint8)

    def at(array: npt.NDArray[Any]) -> tuple[int, Any]:
        return array.ctypes.data, POINTER

    sizes = [(width, INT), (max_tokens, INT)]
    ends = [at(ran), at(told), (2, INT)]
    cpu_kernels.run(
        step_source(), "keep_states", (3, 1), 4, [at(states), at(hidden), at(positions), at(state), *sizes, *ends]
    )
    expected = np.zeros_like(states)
    expected[0, 2], expected[1, 0] = hidden[0], hidden[1]
    np.testing.assert_array_equal(states, expected)
    assert told.tolist() == [[7, 7], [1, 0]]
    order, above, found = (
        np.array([1, 0, 0], np.int32),
        np.array([0, 2, 3], np.int32),
        np.full((3, width), -1, np.float32),
    )
    cpu_kernels.run(
        step_source(), "take_states", (3, 1), 4, [at(found), at(states), at(order), at(above), at(state), *sizes]
    )
    np.testing.assert_array_equal(found, [hidden[1], hidden[0], np.full(width, -1)])
