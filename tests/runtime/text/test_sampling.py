from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adaptc.runtime import RequestError, Sampling
from adaptc.runtime.text.sampling import Sampler, _position

Doubles = npt.NDArray[np.float64]
QUICK = settings(deadline=None, derandomize=True, max_examples=200)


class Point(np.random.Generator):
    """A generator that always draws the same number."""

    def __init__(self, point: float) -> None:
        super().__init__(np.random.PCG64(0))
        self._point = point

    def random(self, *_: object, **__: object) -> float:  # type: ignore[override]
        return self._point


def reference(logits: npt.NDArray[np.float32], seen: set[int], sampling: Sampling) -> tuple[Doubles, float]:
    """Probabilities [vocab] by the definitions, as transformers' processors apply them one by one.

    Also how far the nearest token is from the edge of top-p or min-p, where rounding may decide.
    """
    x = logits.astype(np.float64)
    penalty = sampling.repetition_penalty
    for token in seen:
        x[token] = x[token] * penalty if x[token] < 0 else x[token] / penalty
    x /= sampling.temperature
    edge = 1.0
    if sampling.top_k:
        kth = np.sort(x)[::-1][min(sampling.top_k, len(x)) - 1]
        x[x < kth] = -np.inf
    if sampling.top_p < 1:
        order = np.argsort(-x, kind="stable")
        probabilities = softmax(x)[order]
        before = np.cumsum(probabilities) - probabilities
        edge = min(edge, float(np.abs(before - sampling.top_p).min()))
        removed = before >= sampling.top_p
        removed[0] = False
        lowest = x[order[~removed][-1]]
        x[x < lowest] = -np.inf  # those that equal the last one stay: their order means nothing
    if sampling.min_p > 0:
        relative = np.exp(x - x.max())
        edge = min(edge, float(np.abs(relative - sampling.min_p).min()))
        x[(relative < sampling.min_p) & (relative < 1)] = -np.inf
    return softmax(x), edge


def softmax(x: Doubles) -> Doubles:
    weights = np.exp(x - x.max())
    probabilities: Doubles = weights / weights.sum()
    return probabilities


SAMPLING = st.builds(
    Sampling,
    temperature=st.floats(0.05, 5),
    top_k=st.sampled_from([0, 0, 1, 2, 7, 40, 10_000]),
    top_p=st.sampled_from([1.0, 1.0, 0.999, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
)


@QUICK
@given(
    SAMPLING,
    st.sampled_from([1, 3, 63, 64, 200, 1000, 5000]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_draws_what_the_definitions_say(sampling: Sampling, vocab: int, point: float, seed: int, ties: bool) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 4, vocab).astype(np.float32)
    if ties:
        logits = np.round(logits)
    seen = set(random.integers(0, vocab, 5).tolist())
    expected, edge = reference(logits, seen, sampling)
    ends = np.cumsum(expected)
    assume(edge > 1e-5)
    assume(np.abs(ends - point).min() > 1e-5)

    token = Sampler(sampling, seen, Point(point))(logits)

    assert token == int(np.searchsorted(ends, point, side="right"))


@QUICK
@given(SAMPLING, st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1 - 2**-53]))
def test_the_ends_of_the_range_draw_a_token_that_is_kept(sampling: Sampling, seed: int, point: float) -> None:
    logits = np.random.default_rng(seed).normal(0, 30, 3000).astype(np.float32)
    logits[1000:] = -np.inf
    expected, edge = reference(logits, set(), sampling)
    assume(edge > 1e-5)
    token = Sampler(sampling, (), Point(point))(logits)
    assert expected[token] > 0


@pytest.mark.parametrize(("point", "place"), [(-1e-9, 1), (0.0, 1), (0.3, 1), (0.4, 2), (1.0, 2), (1 + 1e-9, 2)])
def test_a_place_without_weight_is_never_drawn(point: float, place: int) -> None:
    assert _position(np.array([0, 1, 2, 0], np.float32), point) == place


def test_frequencies_are_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(Sampling(temperature=1, top_k=3), (), np.random.default_rng(0))
    drawn = np.bincount([sampler(logits.copy()) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(drawn, np.array([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.01)


@QUICK
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=200))
def test_temperature_0_takes_the_most_likely(values: list[float]) -> None:
    logits = np.array(values, np.float32)
    for temperature in (0, 1e-30, 1e-300):
        sampling = Sampling(temperature=temperature, top_k=3, top_p=0.5)
        assert Sampler(sampling, (), Point(0.99))(logits.copy()) == logits.argmax()


def test_masked_logits_are_never_drawn_and_nothing_overflows() -> None:
    logits = np.full(500, np.finfo(np.float32).min)
    logits[7] = -5
    with np.errstate(all="raise", under="ignore"):
        for temperature, top_p in ((1e-3, 1.0), (1.0, 1.0), (9.0, 0.9)):
            sampling = Sampling(temperature=temperature, top_p=top_p)
            assert Sampler(sampling, (), Point(0.999999))(logits.astype(np.float32)) == 7


def test_a_token_is_penalised_once_it_is_chosen() -> None:
    logits = np.array([3, 2, 1], np.float32)
    sampler = Sampler(Sampling(repetition_penalty=10), (), Point(0))
    assert [sampler(logits.copy()) for _ in range(4)] == [0, 1, 2, 0]


BAD: list[tuple[dict[str, object], str]] = [
    ({"temperature": -0.1}, r"temperature: -0.1; a number from 0 to 100 is needed"),
    ({"temperature": float("nan")}, r"temperature: nan; "),
    ({"temperature": float("inf")}, r"temperature: inf; "),
    ({"temperature": "warm"}, r"temperature: 'warm'; "),
    ({"temperature": True}, r"temperature: True; "),
    ({"temperature": None}, r"temperature: None; "),
    ({"top_k": -1}, r"top_k: -1; a whole number from 0 is needed"),
    ({"top_k": 2.5}, r"top_k: 2.5; "),
    ({"top_p": 0}, r"top_p: 0; a number above 0, at most 1 is needed"),
    ({"top_p": 1.1}, r"top_p: 1.1; "),
    ({"min_p": -0.1}, r"min_p: -0.1; a number from 0 to 1 is needed"),
    ({"min_p": 1.1}, r"min_p: 1.1; "),
    ({"repetition_penalty": 0}, r"repetition_penalty: 0; a number from 0.001 to 100 is needed"),
    ({"repetition_penalty": float("nan")}, r"repetition_penalty: nan; "),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_refuses_absurd_values(options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=f"^{message}"):
        Sampling(**options)  # type: ignore[arg-type]


def test_accepts_the_ends_of_each_range() -> None:
    Sampling(temperature=0, top_k=0, top_p=1, min_p=0, repetition_penalty=100)
    Sampling(temperature=100, top_k=10**9, top_p=1e-9, min_p=1, repetition_penalty=1e-3)
