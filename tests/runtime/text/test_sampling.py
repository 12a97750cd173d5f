from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adaptc.runtime import RequestError, Sampling
from adaptc.runtime.errors import EngineError
from adaptc.runtime.text.logprobs import LogprobRecord
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


class _Noted:
    """A rule that forbids a token once it was written."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def before(self, logits: npt.NDArray[np.float32]) -> None:
        logits[self.seen] = -np.inf

    def after(self, token: int) -> None:
        self.seen.append(token)


def test_rules_see_every_token_and_decide() -> None:
    rule = _Noted()
    sampler = Sampler(Sampling(rules=[lambda: rule]), [], np.random.default_rng(0))
    assert not sampler.free
    logits = np.array([3, 2, 1, 0], np.float32)
    assert [sampler(logits.copy()) for _ in range(4)] == [0, 1, 2, 3] == rule.seen
    with pytest.raises(EngineError):
        sampler(logits.copy())


def test_a_bias_comes_before_penalties_of_what_was_written() -> None:
    sampler = Sampler(
        Sampling(logit_bias={1: 2.5}, presence_penalty=1, frequency_penalty=0.4), [1], np.random.default_rng(0)
    )
    logits = np.array([1, 0, 0.5], np.float32)
    # Token 1 begins at 2.5, loses 1.4 once and 0.4 for each time after; token 0 the same from 1.
    assert [sampler(logits.copy()) for _ in range(3)] == [1, 1, 0]
    assert not sampler.free


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"presence_penalty": 2.1}, "presence_penalty: 2.1; a number from -2 to 2 is needed"),
        ({"frequency_penalty": "x"}, "frequency_penalty: 'x'; a number from -2 to 2 is needed"),
        ({"logit_bias": {1: 101}}, "logit_bias: 101; a number from -100 to 100 is needed"),
        ({"logit_bias": {-1: 1}}, "logit_bias: -1; a whole number from 0 to 4294967295 is needed"),
        ({"logit_bias": [3]}, "logit_bias: 3; a mapping from token ids to numbers from -100 to 100 is needed"),
        ({"rules": [3]}, "rules: 3; a function that makes a rule is needed"),
    ],
)
def test_new_options_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(said)}$"):
        Sampling(**options)


def test_a_bias_of_a_token_that_is_not_there_is_refused() -> None:
    sampler = Sampler(Sampling(logit_bias={5: 1}), [], np.random.default_rng(0))
    with pytest.raises(RequestError, match="logit_bias: token id 5; ids go from 0 to 2"):
        sampler(np.zeros(3, np.float32))


@pytest.mark.parametrize("seed", range(3))
def test_recorded_log_probabilities_are_of_the_logits_as_they_came(seed: int) -> None:
    random = np.random.default_rng(seed)
    record = LogprobRecord(4)
    sampling = Sampling(temperature=0.5, logit_bias={3: 5}, rules=[lambda: record])
    sampler = Sampler(sampling, [], np.random.default_rng(seed))
    for _ in range(5):
        logits = random.normal(size=50).astype(np.float32)
        token = sampler(logits.copy())
        expected = logits - np.log(np.exp(logits.astype(np.float64)).sum())
        noted = record.tokens[-1]
        assert noted.token == token
        assert noted.logprob == pytest.approx(expected[token], abs=1e-5)
        assert [each for each, _ in noted.top] == np.argsort(-logits)[:4].tolist()
        assert [value for _, value in noted.top] == pytest.approx(np.sort(expected)[::-1][:4].tolist(), abs=1e-5)
