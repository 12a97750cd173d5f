"""Lookup: what was there before is guessed to come again, and guesses are worth what they were."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc.runtime.speculation.drafter import NOTHING
from adaptc.runtime.speculation.lookup import Lookup, lookup_acceptance

TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=60)  # few tokens, so that much is repeated


def test_a_repetition_goes_on_as_it_did() -> None:
    assert Lookup().draft([1, 2, 3, 4, 5, 1, 2], 3).tokens == (3, 4, 5)
    assert Lookup().draft([1, 2, 3, 4, 5, 1, 2], 2).tokens == (3, 4)


def test_one_token_is_no_repetition() -> None:
    assert Lookup().draft([1, 2, 3, 4, 1], 3) is NOTHING
    assert Lookup().draft([1], 3) is NOTHING


def test_the_longest_match_wins_over_a_newer_one() -> None:
    text = [7, 1, 2, 30, 5, 1, 2, 31, 7, 1, 2]
    assert Lookup().draft(text, 1).tokens == (30,)
    assert Lookup().draft([*text[1:8], 1, 2], 1).tokens == (31,), "of equal ones the newest does"


def test_nothing_is_proposed_past_the_text() -> None:
    assert Lookup().draft([1, 2, 1, 2], 8).tokens == (1, 2)
    assert Lookup().draft([5, 5, 5], 8).tokens == (5,)


def test_a_wrong_guess_ends_the_repetition() -> None:
    lookup = Lookup()
    text = [1, 2, 3, 4, 5, 1, 2]
    assert lookup.draft(text, 2).tokens == (3, 4)
    assert lookup.draft([*text, 9], 2) is NOTHING


def test_guesses_are_worth_what_they_were() -> None:
    right, wrong = lookup_acceptance(), lookup_acceptance()
    text = [1, 2, 3, 4, 1, 2]
    before = Lookup().draft(text, 1).sure[0]
    for acceptance, newest in ((right, 3), (wrong, 9)):
        for _ in range(20):
            lookup = Lookup(acceptance)
            lookup.draft(text, 1)
            lookup.draft([*text, newest], 1)
    assert Lookup(wrong).draft(text, 1).sure[0] < 0.1 < before < 0.8 < Lookup(right).draft(text, 1).sure[0]


def test_a_prompt_shows_nothing_of_what_guesses_in_answers_are_worth() -> None:
    acceptance = lookup_acceptance()
    Lookup(acceptance).draft([5] * 500, 4)  # as the places of an image
    assert Lookup(acceptance).draft([1, 2, 3, 1, 2], 1) == Lookup().draft([1, 2, 3, 1, 2], 1)


def test_longer_matches_and_longer_repetitions_are_surer() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    by_size = [Lookup().draft([*text, 40 + size, *text[:size]], 1).sure[0] for size in (2, 4, 6)]
    assert by_size == sorted(by_size)
    assert by_size[0] < by_size[-1]
    assert all(0 < sure <= 1 for sure in Lookup().draft([*text, 50, *text[:3]], 5).sure)


@settings(deadline=None)
@given(TEXTS, st.lists(st.integers(1, 9), max_size=30), st.integers(1, 9))
def test_in_pieces_it_guesses_as_at_once(text: list[int], pieces: list[int], most: int) -> None:
    """What was drafted before, and how often, changes no guess; only what guesses are worth."""
    lookup, known = Lookup(), 0
    for piece in pieces:
        known = min(known + piece, len(text) - 1)
        if known:
            lookup.draft(text[:known], most)
    assert lookup.draft(text, most).tokens == Lookup().draft(text, most).tokens


@settings(deadline=None)
@given(TEXTS, st.integers(1, 9))
def test_what_is_guessed_followed_the_same_tokens_before(text: list[int], most: int) -> None:
    draft = Lookup().draft(text, most)
    assert len(draft.tokens) == len(draft.sure) <= most
    if draft.tokens:
        after = (*text[-2:], *draft.tokens)
        places = range(len(text) - len(after) + 1)
        assert any(tuple(text[at : at + len(after)]) == after for at in places)
