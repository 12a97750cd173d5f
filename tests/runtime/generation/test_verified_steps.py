"""Steps that verify drafts: whatever joins, leaves, fails or is preempted, each writes what it writes alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc.runtime import EngineError
from adaptc.runtime.backends.host.prefix_cache import PrefixCache
from adaptc.runtime.generation.scheduler import Limits, Scheduler
from adaptc.runtime.model.verifier import Verified
from tests.models.history_lm import decoder_spec, greedy
from tests.models.verifying_lm import VerifyingLm, speculation
from tests.runtime.generation.test_scheduler import ENDING, EVENTS, Event, replay_events, run, sequence


@settings(deadline=None, max_examples=60)
@given(
    EVENTS,
    st.integers(1, 4),
    st.sampled_from([1, 5, 64]),
    st.sampled_from([0, 3000, 1 << 20]),
    st.none() | st.integers(40, 200),
    st.sampled_from([2, 64]),
    st.sampled_from([0.0, 0.2, 0.7]),
)
def test_every_sequence_writes_what_it_writes_alone(
    events: list[Event],
    batch: int,
    chunk: int,
    prefixes: int,
    kv_tokens: int | None,
    unread: int,
    wrong: float,
) -> None:
    """Whatever joins, leaves, is preempted or cancelled in the middle."""
    decoder = VerifyingLm(ENDING).decoder(batch, chunk, PrefixCache(prefixes))
    limits = Limits(piece=4, alone=16, kv_tokens=kv_tokens, unread=unread)
    drafts = speculation(decoder, wrong)
    replay_events(Scheduler(decoder, limits, speculation=drafts), events, speculate="auto")


def scheduler(wrong: float = 0.0, batch: int = 4, **limits: Any) -> Scheduler:
    decoder = VerifyingLm(decoder_spec(max_tokens=90)).decoder(batch)
    return Scheduler(decoder, Limits(piece=4, alone=8, **limits), speculation=speculation(decoder, wrong))


def test_the_cache_never_holds_more_than_its_limit() -> None:
    running = scheduler(kv_tokens=50)
    sequences = [sequence([index] * 12, 25, speculate="auto") for index in range(6)]
    running.add(sequences)
    while not all(each.ended for each in sequences):
        running.step()
        assert running.status.kv_tokens <= 50
    spec = decoder_spec(max_tokens=90)
    assert [each.ids for each in sequences] == [greedy([index] * 12, 25, spec) for index in range(6)]
    assert sum(each.accepted for each in sequences) > 0


def test_a_sequence_that_is_put_back_goes_on_beside_one_that_drafts() -> None:
    running = scheduler(batch=2)
    low, high = sequence([1, 2, 3], 60, speculate="auto"), sequence([4], 40, 1, speculate="auto")
    third = sequence([5, 6], 30, 2, speculate="auto")
    running.add([low, high])
    while len(low.ids) < 20:
        running.step()
    running.add([third])
    run(running, [low, high, third])
    assert running.status.preemptions >= 1
    spec = decoder_spec(max_tokens=90)
    assert (low.ids, high.ids) == (greedy([1, 2, 3], 60, spec), greedy([4], 40, spec))
    assert third.ids == greedy([5, 6], 30, spec)


@pytest.mark.parametrize("at", [1, 2, 5, 9])
def test_an_error_in_the_middle_of_a_draft_ends_its_own_sequence_only(at: int) -> None:
    running = scheduler()
    broken, right = sequence([1, 2], 40, speculate="auto"), sequence([3, 4], 40, speculate="auto")
    running.add([broken, right])
    choose, calls = broken.sampler, iter(range(1000))

    def fail(*given: Any) -> int:
        if next(calls) == at:
            raise EngineError("logits: the highest is nan")
        return choose(*given)

    broken.sampler = fail  # type: ignore[assignment]
    run(running, [broken, right])
    spec = decoder_spec(max_tokens=90)
    assert isinstance(broken.error, EngineError)
    assert broken.ids == greedy([1, 2], at, spec)
    assert right.ids == greedy([3, 4], 40, spec)
    again = sequence([1, 2], 40, speculate="auto")
    running.add([again])
    run(running, [again])
    assert again.ids == greedy([1, 2], 40, spec)


def test_an_engine_that_fails_to_verify_ends_its_own_sequence_only() -> None:
    decoder = VerifyingLm(decoder_spec(max_tokens=90)).decoder(4)
    running = Scheduler(decoder, Limits(piece=4, alone=8), speculation=speculation(decoder, 0.0))
    verify, failed = decoder.verify, list[int]()

    def once(slot: int, tokens: Any) -> Verified:
        if slot == 1 and not failed:
            failed.append(slot)
            raise EngineError("engine: out of memory")
        return verify(slot, tokens)

    decoder.verify = once  # type: ignore[method-assign]
    sequences = [sequence([index, 2], 40, speculate="auto") for index in range(3)]
    running.add(sequences)
    run(running, sequences)
    assert [isinstance(each.error, EngineError) for each in sequences] == [False, True, False]
    spec = decoder_spec(max_tokens=90)
    expected = [greedy([index, 2], 40, spec) for index in range(3)]
    assert [sequences[0].ids, sequences[2].ids] == [expected[0], expected[2]]
    assert sequences[1].ids == expected[1][: len(sequences[1].ids)]


def test_a_step_writes_more_than_a_token_and_its_time_counts_for_all() -> None:
    running = scheduler(batch=2)
    both = [sequence([1, 2], 40, speculate="auto"), sequence([3], 40)]
    running.add(both)
    run(running, both)
    assert both[1].drafter is None
    assert both[0].accepted > 0
    assert running.status.written_tokens == 80
    ahead = both[1].decode_seconds - both[0].decode_seconds
    assert ahead > 0, "the one that writes token by token is in more steps"
