"""Multimodal sessions: which subset a request gets, what is never run, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adaptc.runtime.errors import EngineError, RequestError
from tests.models.views_model import NAMES, rows, session


def by_hand(given: dict[str, Any], subset: tuple[str, ...]) -> Any:
    total = np.sum([given[name].sum(1) * 2 for name in subset], 0)
    return np.stack([total, -total], 1)


@pytest.mark.parametrize("subset", [("cheap",), ("dear",), NAMES])
def test_named_modalities_and_no_others_run(subset: tuple[str, ...]) -> None:
    given = rows(5)
    with session() as running:
        answer = running.infer(given, modalities=subset)
        np.testing.assert_allclose(answer.outputs["logits"], by_hand(given, subset), rtol=1e-5)
        assert answer.trace.modalities == (subset,) * 5
        expected = {f"m.encode.{name}" for name in subset} | {f"m.fuse.{'+'.join(subset)}"}
        assert set(running.graphs.ran) == set(running.graphs.loaded) == expected


@pytest.mark.parametrize(
    ("asked", "option"),
    [
        ({}, "cheap+dear"),
        ({"accuracy": 0.8}, "cheap"),
        ({"accuracy": 0.82}, "dear"),
        ({"accuracy": 0.9}, "cheap+dear"),
        ({"deadline_ms": 50}, "cheap+dear"),
        ({"deadline_ms": 39}, "dear"),
        ({"deadline_ms": 3}, "cheap"),
        ({"deadline_ms": 39, "accuracy": 0.8}, "dear"),
    ],
)
def test_accuracy_and_deadline_choose(asked: dict[str, float], option: str) -> None:
    with session() as running:
        assert running.infer(rows(4), **asked).trace.option == option  # type: ignore[arg-type]


def test_a_missing_modality_is_answered_by_the_others() -> None:
    given = rows(2)
    with session() as running:
        answer = running.infer({"dear": given["dear"], "cheap": None})
        assert answer.trace.modalities == (("dear",),) * 2
        assert running.infer({"cheap": given["cheap"][0]}).outputs["logits"].shape == (1, 2)
    with session(profile=None) as running:
        assert running.infer({"cheap": given["cheap"]}).trace.option == "cheap"


def test_what_comes_again_is_not_encoded_again() -> None:
    given = rows(3)
    with session() as running:
        first = running.infer(given, modalities=NAMES).outputs["logits"]
        again = {name: array[[2, 0, 0]] for name, array in given.items()}
        second = running.infer(again, modalities=NAMES).outputs["logits"]
        np.testing.assert_array_equal(second, first[[2, 0, 0]])
        assert running.graphs.ran["m.encode.dear"] == 1
        assert running.graphs.ran["m.fuse.cheap+dear"] == 2
        running.infer(rows(3, seed=1), modalities=("dear",))
        assert running.graphs.ran["m.encode.dear"] == 2


def test_the_cache_has_a_limit() -> None:
    with session(cache_bytes=5 * 12) as running:
        running.infer(rows(20), modalities=("dear",))
        assert 0 < running.graphs.cache.bytes <= 5 * 12
    with session(cache_bytes=0) as running:
        running.infer(rows(2), modalities=("dear",))
        running.infer(rows(2), modalities=("dear",))
        assert running.graphs.ran["m.encode.dear"] == 2


BROKEN = np.array([[0, 0, 0], [0, np.nan, 0]], np.float32)


@pytest.mark.parametrize(
    ("inputs", "asked", "message"),
    [
        ({"smell": [[1, 2, 3]]}, {}, "inputs: no modality or input 'smell'; there are: cheap, dear"),
        ({}, {}, "inputs: none; one or more of cheap, dear are needed"),
        ({"cheap": np.zeros((1, 4))}, {}, "inputs: cheap: float64[1, 4]; float32[batch, 3] is needed"),
        ({"cheap": [[1, 2], [3]]}, {}, "inputs: cheap: lists of different lengths; float32[batch, 3] is needed"),
        ({"cheap": "a word"}, {}, "inputs: cheap: <U6; float32[batch, 3] is needed"),
        ({"cheap": np.zeros((1, 3), int)}, {}, "inputs: cheap: int64; float32[batch, 3] is needed"),
        ({"cheap": BROKEN}, {}, "inputs: cheap: row 1 has values that are not finite; is its file damaged?"),
        ({"cheap": np.zeros((0, 3))}, {}, "inputs: rows {'cheap': 0}; the same number of each, from 1, is needed"),
        (
            {"cheap": np.zeros((2, 3)), "dear": np.zeros((1, 3))},
            {},
            "inputs: rows {'cheap': 2, 'dear': 1}; the same number of each, from 1, is needed",
        ),
        (rows(1), {"accuracy": 0.95}, "accuracy: 0.950 cannot be reached with these inputs; at most 0.900 can"),
        (rows(1), {"accuracy": 2}, "accuracy: 2; a share from 0 to 1 is needed"),
        (rows(1), {"deadline_ms": 0.5}, "deadline_ms: 0.5 cannot be kept; cheap takes 1.0"),
        (rows(1), {"deadline_ms": -1}, "deadline_ms: -1; more than 0 is needed"),
        (rows(1), {"modalities": ["smell"]}, "modalities: no 'smell'; there are: cheap, dear"),
        (
            {"cheap": np.zeros((1, 3))},
            {"modalities": ["dear"]},
            "modalities: dear: not among the inputs; there are: cheap",
        ),
        (
            rows(1),
            {"modalities": ["dear"], "accuracy": 0.5},
            "modalities: together with accuracy or deadline_ms; one or the other is needed",
        ),
    ],
)
def test_wrong_requests_are_a_sentence(inputs: Any, asked: dict[str, Any], message: str) -> None:
    with session() as running:
        with pytest.raises(RequestError) as caught:
            running.infer(inputs, **asked)
        assert str(caught.value) == message
        assert not running.graphs.ran


def test_without_a_profile_nothing_can_be_promised() -> None:
    with session(profile=None) as running:
        with pytest.raises(RequestError, match=r"^accuracy, deadline_ms: this bundle was never profiled"):
            running.infer(rows(1), accuracy=0.5)
        with pytest.raises(RequestError, match=r"^jobs: this bundle was never profiled"):
            running.jobs()


def test_a_closed_session_says_so() -> None:
    running = session()
    running.close()
    with pytest.raises(EngineError, match=r"^m.encode.cheap: closed$"):
        running.infer(rows(1), modalities=("cheap",))


def test_choices_follow_what_was_measured() -> None:
    """The profile says 1 ms of the cheap one and 10 of both; here and now everything takes a hundred times longer."""
    with session() as running:
        options = {option.name: option for option in running.options}
        assert running.infer(rows(1), deadline_ms=15).trace.option == "cheap+dear"
        for _ in range(60):
            running.prices.times.record(options["cheap"], 1, 0.1)
            running.prices.times.record(options["cheap+dear"], 1, 1.0)
        assert running.infer(rows(1), deadline_ms=150).trace.option == "cheap"
        with pytest.raises(RequestError, match=r"^deadline_ms: 15 cannot be kept; cheap takes \d+\.\d$"):
            running.infer(rows(1), deadline_ms=15)


def test_what_requests_take_is_measured() -> None:
    with session() as running:
        assert running.prices.times.pace == 1.0
        for seed in range(20):
            running.infer(rows(1, seed), accuracy=0.9)
        assert running.prices.times.pace < 0.5  # the profile says 10 ms, and a sum takes none
