"""Strategies: the exact optimum, held against trying everything."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc.runtime.errors import RequestError
from adaptc.runtime.multimodal.strategy import ModalityOption, Strategies, batch_seconds, costs


def least(option: ModalityOption, count: int) -> float:
    """The cheapest way to split a count into batches, by trying all."""
    if not count:
        return 0.0
    sizes = range(1, min(count, len(option.seconds)) + 1)
    return min(option.seconds[size - 1] + least(option, count - size) for size in sizes)


@st.composite
def option(draw: st.DrawFn, name: str) -> ModalityOption:
    seconds = draw(st.lists(st.floats(0.1, 2), min_size=3, max_size=3))
    return ModalityOption(name, (name,), draw(st.floats(0, 1)), tuple(float(s) for s in np.cumsum(seconds)))


@settings(max_examples=60, deadline=None)
@given(options=st.tuples(option("a"), option("b"), option("c")), size=st.integers(1, 6), floor=st.floats(0, 1))
def test_the_best_way_is_the_best_of_all_ways(options: tuple[ModalityOption, ...], size: int, floor: float) -> None:
    every = [
        (sum(least(o, n) for o, n in zip(options, counts, strict=True)), counts)
        for counts in product(range(size + 1), repeat=3)
        if sum(counts) == size
        and sum(o.accuracy * n for o, n in zip(options, counts, strict=True)) >= floor * size - 1e-9
    ]
    strategies = Strategies(options, size)
    if not every:
        with pytest.raises(RequestError, match=r"^accuracy: .* cannot be reached"):
            strategies.best(size, floor)
        return
    found = strategies.best(size, floor)
    assert found.seconds == pytest.approx(min(every)[0])
    assert sum(found.counts) == size
    assert found.accuracy * size == pytest.approx(
        sum(o.accuracy * n for o, n in zip(options, found.counts, strict=True))
    )
    front = strategies.front(size)
    assert all(a.seconds < b.seconds and a.accuracy < b.accuracy for a, b in pairwise(front))


@settings(max_examples=30, deadline=None)
@given(one=option("a"), count=st.integers(1, 8))
def test_costs_are_those_of_the_best_batches(one: ModalityOption, count: int) -> None:
    assert costs(one, count)[count] == pytest.approx(least(one, count))


def test_between_batches_that_were_timed_stands_a_straight_line() -> None:
    assert batch_seconds((1, 2, 4), (1.0, 1.5, 3.5)) == pytest.approx((1.0, 1.5, 2.5, 3.5))


def test_sizes_have_limits() -> None:
    strategies = Strategies([ModalityOption("a", ("a",), 0.5, (1.0,))], 3)
    for size in (0, 4):
        with pytest.raises(RequestError, match=rf"^job: {size} requests"):
            strategies.front(size)
