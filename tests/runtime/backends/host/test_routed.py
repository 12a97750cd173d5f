"""Routes: one trunk for all, rows of several routes in one step, and a route that changes on the way."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc.runtime import Result
from adaptc.runtime.bundle.plan import RouterRecord
from adaptc.runtime.errors import BundleError, RequestError
from adaptc.runtime.model.router import NAMES, RouterNet, features, picked, read_router
from adaptc.runtime.text.tokenizer import Tokenizer
from tests.gpu.answers import mixed
from tests.models.history_lm import HistoryLm, decoder_spec
from tests.models.routed_lm import SHIFTS, WIDTH, RoutedLm
from tests.models.sessions import session_of
from tests.models.tiny_tokenizer import byte_level, files

COSTS = {"dear": 100, "middle": 60, "cheap": 30}


def router(losses: tuple[float, float, float] = (0.0, 0.1, 0.4), threshold: float = 0.2) -> RouterNet:
    """One that says the same of every prompt."""
    weights = {
        "w1": np.zeros((2, 2 * WIDTH), np.float32),
        "b1": np.zeros(2, np.float32),
        "w2": np.zeros((3, 2), np.float32),
        "b2": np.array(losses, np.float32),
    }
    return RouterNet(
        weights, COSTS, RouterRecord("", threshold, ((1.0, -math.inf), (0.8, 0.1), (0.6, 0.2), (0.3, 0.5)), {})
    )


def test_a_route_writes_what_its_tail_says() -> None:
    with RoutedLm().session() as session:
        assert session.routes == tuple(SHIFTS)
        for route in SHIFTS:
            found = session.generate([1, 2, 3, 4], max_new_tokens=6, route=route)
            assert list(found.ids) == RoutedLm().greedy([1, 2, 3, 4], [route] * 6)
            assert found.trace.routes == ((0, route),)
            assert found.trace.route == route


def test_the_first_route_is_taken_where_nothing_picks() -> None:
    with RoutedLm().session() as session:
        assert session.generate([1, 2], max_new_tokens=3).trace.route == "dear"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 49), min_size=1, max_size=9), st.sampled_from(list(SHIFTS))),
        min_size=1,
        max_size=7,
    ),
    st.integers(1, 4),
    st.integers(1, 12),
)
def test_mixed_routes_in_a_batch_write_what_each_writes_alone(
    requests: list[tuple[list[int], str]], batch: int, count: int
) -> None:
    """Rows of several routes, of several lengths, that end at different times: eos is one of the tokens."""
    spec = decoder_spec(eos=tuple(range(0, 50, 7)))
    model = RoutedLm(spec)
    with model.session(batch=batch) as session:
        found = mixed(session, requests, count)
    for (prompt, route), ids in zip(requests, found, strict=True):
        expected: list[int] = []
        while len(expected) < count and not (expected and expected[-1] in spec.eos_token_ids):
            expected = model.greedy(prompt, [route] * (len(expected) + 1))
        assert ids == expected
    assert all(batch_ <= batch for lm in model.tail_lms.values() for batch_, _ in lm.calls)


def test_a_step_runs_the_trunk_once_for_all_rows() -> None:
    model = RoutedLm()
    with model.session(batch=3) as session:
        mixed(session, [([1, 2], "dear"), ([3], "cheap"), ([4, 5], "dear")], 4)
    assert sorted(model.trunk_lm.calls[:3]) == [(1, 1), (1, 2), (1, 2)]
    assert model.trunk_lm.calls[3:] == [(3, 1), (3, 1), (3, 1)]
    assert model.tail_lms["dear"].calls[2:] == [(2, 1)] * 3
    assert model.tail_lms["cheap"].calls[1:] == [(1, 1)] * 3


def test_reroute_reads_the_kept_states_and_goes_on() -> None:
    model = RoutedLm(decoder_spec(vocab=320, max_tokens=100))
    tokenizer = Tokenizer(files(byte_level()))
    with model.session(chunk=4, tokenizer=tokenizer) as session:
        stream = session.generate([1, 2, 3, 4, 5], max_new_tokens=40, route="dear", stream=True)
        next(stream)
        calls = len(model.trunk_lm.calls)
        session.reroute("cheap")
        for _ in stream:
            pass
        result = stream.result
        with pytest.raises(RequestError, match=r"^reroute: no sequence is being streamed"):
            session.reroute("dear")
    [(first, before), (at, after)] = result.trace.routes
    assert (first, before, after, result.trace.route) == (0, "dear", "cheap", "cheap")
    assert 0 < at < 39
    assert list(result.ids) == model.greedy([1, 2, 3, 4, 5], ["dear"] * at + ["cheap"] * (40 - at))
    assert model.trunk_lm.calls[calls:] == [(1, 1)] * (40 - at), "what was read is not read again"
    read = 5 + at - 1  # the newest token is not read yet
    chunks = [(1, min(4, read - start)) for start in range(0, read, 4)]
    assert model.tail_lms["cheap"].calls == chunks + [(1, 1)] * (40 - at)


def test_reroute_back_and_forth_with_several_rows_in_the_same_tail() -> None:
    """A row that leaves a tail makes room there; the row that takes its place keeps its own sequence."""
    from adaptc.runtime.model.options import RequestOptions

    model = RoutedLm()
    with model.session(batch=3) as session:
        decoder = session._decoder
        sequences = [[1, 2, 3], [4], [5, 6]]
        logits = [decoder.start(row, np.array(ids), RequestOptions(None, "dear")) for row, ids in enumerate(sequences)]
        routes = ["dear"] * 3
        for turn, (row, route) in enumerate([(0, "cheap"), (2, "cheap"), (0, "dear"), (1, "middle"), (2, "dear")]):
            for ids, each in zip(sequences, logits, strict=True):
                ids.append(int(each.argmax()))
            decoder.reroute(row, route)
            routes[row] = route
            logits = list(decoder.decode([ids[-1] for ids in sequences]).copy())
            expected = [model.greedy(ids, [each])[0] for ids, each in zip(sequences, routes, strict=True)]
            assert [int(each.argmax()) for each in logits] == expected, turn


def test_score_reads_by_a_route() -> None:
    ids = [1, 5, 9, 33, 2, 8, 4]
    with RoutedLm().session() as session:
        for route in SHIFTS:
            chunked = session.score(ids, route=route).values
            np.testing.assert_allclose(session.score(ids, route=route, step=True).values, chunked, rtol=1e-6)
            assert chunked.shape == (6,)
        assert (session.score(ids, route="dear").values != session.score(ids, route="cheap").values).all()


def test_score_between_answers_of_a_batch_leaves_nothing_behind() -> None:
    model = RoutedLm()
    with model.session(batch=3) as session:
        for _ in range(2):
            found = session.generate([[1, 2], [3], [4, 4, 4]], max_new_tokens=5, route="middle")
            assert [list(each.ids) for each in found] == [
                model.greedy(prompt, ["middle"] * 5) for prompt in ([1, 2], [3], [4, 4, 4])
            ]
            session.score([1, 2, 3], route="middle")


def test_refuses_routes_that_are_not_there() -> None:
    with RoutedLm().session() as session:
        for call in (session.generate, session.score):
            with pytest.raises(RequestError, match=r"^route: no route 'fast'"):
                call([1], route="fast")
        with pytest.raises(RequestError, match=r"^route: no route 'fast'"):
            session.reroute("fast")
        with pytest.raises(RequestError, match=r"^reroute: no sequence is being streamed"):
            session.reroute("cheap")
    plain = HistoryLm(decoder_spec())
    with session_of(plain.engine, plain.spec) as session, pytest.raises(RequestError) as caught:
        session.generate([1], route="dear")
    assert str(caught.value) == "route: no route 'dear'; this bundle has none"


def test_a_coroutine_names_its_route() -> None:
    async def ask() -> Result:
        return await session.generate_async([1, 2], max_new_tokens=3, route="cheap")

    with RoutedLm().session() as session:
        assert asyncio.run(ask()).trace.route == "cheap"


def test_the_router_picks_and_a_budget_moves_its_threshold() -> None:
    with RoutedLm().session(router=router()) as session:
        assert session.generate([1, 2], max_new_tokens=2).trace.route == "middle"
        routes = [session.generate([1], max_new_tokens=1, budget=b).trace.route for b in (0, 0.3, 0.5, 0.7, 1)]
        assert routes == ["cheap", "middle", "middle", "middle", "dear"]
        assert session.generate([1], max_new_tokens=1, route="cheap", budget=1).trace.route == "cheap"


def test_choose_says_why() -> None:
    with RoutedLm().session(router=router()) as session:
        choice = session.choose([1, 2, 3])
        assert (choice.route, choice.threshold, choice.costs) == ("middle", 0.2, COSTS)
        assert choice.losses == pytest.approx({"dear": 0.0, "middle": 0.1, "cheap": 0.4})
        assert session.choose([1], budget=0).route == "cheap"
        assert list(session.generate([1, 2], max_new_tokens=3).ids) == RoutedLm().greedy([1, 2], ["middle"] * 3)
    with RoutedLm().session() as session, pytest.raises(RequestError, match=r"^route: this bundle has no router"):
        session.choose([1])
    plain = HistoryLm(decoder_spec())
    with (
        session_of(plain.engine, plain.spec) as session,
        pytest.raises(RequestError, match=r"^route: this bundle has no "),
    ):
        session.choose([1])


def test_the_cheapest_route_that_loses_little_enough_is_picked() -> None:
    losses = {"dear": 0.0, "middle": 0.3, "cheap": 0.1}
    assert picked(losses, COSTS, 0.05) == "dear"
    assert picked(losses, COSTS, 0.2) == "cheap"
    assert picked(losses, COSTS, -math.inf) == "dear"
    assert picked({"dear": 9.0, "middle": 9.0, "cheap": 9.0}, COSTS, 0.2) == "dear", "none fits: the dearest"


def test_a_withheld_route_is_taken_by_name_alone() -> None:
    net = router()
    without = replace(net, record=replace(net.record, withheld={"cheap": "worse"}))
    states = np.ones((4, WIDTH), np.float32)
    assert net.choose(states, budget=0.0).route == "cheap"
    assert without.choose(states, budget=0.0).route == "middle"


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_larger_budget_never_means_a_higher_threshold(one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert router().threshold_at(small) >= router().threshold_at(large)


def test_features_are_the_mean_and_the_last_of_normed_states() -> None:
    states = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 5.0]], np.float32)
    root = math.sqrt(3)
    expected = [0.3 * root, 0.4 * root, 0.5 * root, 0, 0, root]
    np.testing.assert_allclose(features(states), expected, rtol=1e-5)


def saved(routes: list[str], weights: dict[str, Any], dtype: str = "F32") -> bytes:
    """A safetensors file, written by hand."""
    header: dict[str, Any] = {"__metadata__": {"adaptc.router": json.dumps({"routes": routes})}}
    data = b""
    for name, value in weights.items():
        content = np.asarray(value, "<f4").tobytes()
        header[name] = {"dtype": dtype, "shape": np.shape(value), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_a_routers_file_is_read_without_a_library() -> None:
    given_ = dict(router().weights)
    found = read_router(saved(list(COSTS), given_), list(COSTS), "r")
    for name in NAMES:
        np.testing.assert_array_equal(found[name], given_[name])


def test_refuses_a_routers_file_that_is_damaged_or_of_other_routes() -> None:
    good = saved(list(COSTS), dict(router().weights))
    for bad in (b"", good[:30], saved(list(COSTS), {"w1": 0}), saved(list(COSTS), dict(router().weights), "F16")):
        with pytest.raises(BundleError, match=r"^r: no router: .*; `adaptc train` makes one$"):
            read_router(bad, list(COSTS), "r")
    with pytest.raises(BundleError, match=r"^r: a router of dear, middle, cheap"):
        read_router(good, ["a", "b"], "r")
