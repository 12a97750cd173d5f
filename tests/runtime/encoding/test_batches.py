"""Texts are divided into batches of like lengths: each once, none too large, little of it padding."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from adaptc.runtime.encoding.batches import FEW_TOKENS, MOST_PADDING, MOST_TOKENS, batches


@given(st.lists(st.integers(1, 700), min_size=1, max_size=60))
def test_each_text_is_in_one_batch(lengths: list[int]) -> None:
    found = list(batches(lengths))
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    for places in found:
        own = [lengths[at] for at in places]
        whole = len(own) * max(own)
        assert len(own) == 1 or whole <= MOST_TOKENS
        assert whole <= FEW_TOKENS or whole - sum(own) <= MOST_PADDING * whole


def test_texts_of_one_length_fill_batches() -> None:
    assert [len(places) for places in batches([64] * 40)] == [16, 16, 8]


def test_the_longest_come_first_and_equals_keep_their_order() -> None:
    assert [places.tolist() for places in batches([5, 900, 5, 800])] == [[1], [3], [0, 2]]
