"""The scheduler: whatever joins, leaves, waits, is preempted or cancelled, each writes what it writes alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc.runtime import DecoderSpec, EngineError
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.backends.host.prefix_cache import PrefixCache
from adaptc.runtime.generation.request import Request
from adaptc.runtime.generation.scheduler import Limits, Scheduler
from adaptc.runtime.generation.sequence import TokenSequence, sequence_of
from adaptc.runtime.generation.work import ReadingJob
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.text.tokenizer import Tokenizer
from tests.models.history_lm import HistoryLm, decoder_spec, greedy
from tests.models.routed_lm import SHIFTS, RoutedLm
from tests.models.tiny_tokenizer import byte_level, files

SPEC = decoder_spec(vocab=50, max_tokens=90)
TOKENIZER = Tokenizer(files(byte_level()))  # its first tokens are printable: each has a piece of text
ENDING = decoder_spec(vocab=50, max_tokens=90, eos=(7, 21))


def scheduler_of(
    lm: HistoryLm, batch: int = 4, chunk: int = 8, prefixes: int = 0, limits: Limits | None = None
) -> Scheduler:
    decoder = HostDecoder(lm.engine, lm.spec, batch, chunk, prefixes=PrefixCache(prefixes))
    return Scheduler(decoder, limits or Limits(piece=4, alone=8))


def sequence(
    prompt: list[int],
    count: int = 10,
    priority: int = 0,
    spec: DecoderSpec = SPEC,
    route: str | None = None,
    speculate: str = "off",
) -> TokenSequence:
    request, ids = Request(max_new_tokens=count, priority=priority), np.array(prompt, np.int64)
    return sequence_of(request, ids, spec, TOKENIZER, RequestOptions(route=route), speculate=speculate)


def run(scheduler: Scheduler, sequences: list[TokenSequence], most: int = 2000) -> int:
    """Step until all have ended; the number of steps."""
    for steps in range(most):
        if all(each.ended for each in sequences):
            return steps
        scheduler.step()
    raise AssertionError("somebody is stuck")


@dataclass
class Event:
    """A request that comes at a step."""

    step: int
    prompt: list[int]
    count: int
    priority: int
    cancelled_after: int | None
    reads_every: int | None


BEGINNINGS: tuple[list[int], ...] = ([], list(range(20)), list(range(20)) + [5] * 17, [9] * 33)
EVENTS = st.lists(
    st.builds(
        Event,
        st.integers(0, 30),
        st.builds(
            lambda beginning, end: beginning + end,
            st.sampled_from(BEGINNINGS),
            st.lists(st.integers(0, 49), min_size=1, max_size=20),
        ),
        st.integers(1, 30),
        st.integers(0, 2),
        st.none() | st.integers(0, 25),
        st.none() | st.integers(1, 9),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(
    EVENTS,
    st.integers(1, 4),
    st.sampled_from([1, 2, 5, 64]),
    st.sampled_from([0, 3000, 1 << 20]),
    st.none() | st.integers(40, 200),
    st.sampled_from([2, 64]),
)
def test_every_sequence_writes_what_it_writes_alone(
    events: list[Event], batch: int, chunk: int, prefixes: int, kv_tokens: int | None, unread: int
) -> None:
    lm = HistoryLm(ENDING)
    limits = Limits(piece=4, alone=16, kv_tokens=kv_tokens, unread=unread)
    replay_events(scheduler_of(lm, batch, chunk, prefixes, limits), events)


@settings(deadline=None, max_examples=60)
@given(
    EVENTS, st.integers(1, 4), st.sampled_from([0, 3000, 1 << 20]), st.none() | st.integers(40, 200), st.integers(0, 99)
)
def test_every_sequence_writes_what_its_route_writes_alone(
    events: list[Event], batch: int, prefixes: int, kv_tokens: int | None, seed: int
) -> None:
    model = RoutedLm(ENDING)
    limits = Limits(piece=4, alone=16, kv_tokens=kv_tokens, unread=2)
    scheduler = Scheduler(model.decoder(batch, 5, prefixes=PrefixCache(prefixes)), limits)
    names = np.random.default_rng(seed).choice(list(SHIFTS), len(events))
    replay_events(scheduler, events, [str(name) for name in names], model)


def replay_events(
    scheduler: Scheduler,
    events: list[Event],
    routes: list[str] | None = None,
    model: RoutedLm | None = None,
    speculate: str = "off",
) -> None:
    """Run sequences that come and go, and compare each with what it writes alone."""
    added: list[tuple[Event, TokenSequence]] = []
    pending = sorted(events, key=lambda event: event.step)
    for step in range(5000):
        while pending and pending[0].step <= step:
            event = pending.pop(0)
            route = None if routes is None else routes[events.index(event)]
            each = sequence(event.prompt, event.count, event.priority, ENDING, route, speculate)
            each.stream = None if event.reads_every is None else deque()
            scheduler.add([each])
            added.append((event, each))
        scheduler.step()
        for event, each in added:
            if each.stream and event.reads_every is not None and step % event.reads_every == 0:
                each.stream.popleft()
            if event.cancelled_after is not None and step - event.step >= event.cancelled_after:
                scheduler.cancel(each)
        if not pending and all(each.ended for _, each in added):
            break
    else:
        raise AssertionError("somebody is stuck")
    for event, each in added:
        limit = min(event.count, 91 - len(event.prompt))
        if model is None or routes is None:
            alone = greedy(event.prompt, limit, ENDING)
        else:
            alone = model.greedy(event.prompt, [routes[events.index(event)]] * limit)
            alone = alone[: next((index + 1 for index, token in enumerate(alone) if token in (7, 21)), limit)]
        assert each.error is None
        assert each.ids == (alone if each.done else alone[: len(each.ids)])
    scheduler.step()
    assert (scheduler.status.running, scheduler.status.waiting, scheduler.status.kv_tokens) == (0, 0, 0)


def test_sequences_join_and_leave_between_steps() -> None:
    lm = HistoryLm(SPEC)
    scheduler = scheduler_of(lm)
    first = sequence([1, 2], 12)
    scheduler.add([first])
    for _ in range(3):
        scheduler.step()
    second = sequence([3, 4], 2)
    scheduler.add([second])
    run(scheduler, [second])
    assert not first.ended
    assert (2, 1) in lm.calls, "they shared a step"
    run(scheduler, [first])
    assert lm.calls[-1] == (1, 1)


def test_a_long_prompt_does_not_keep_others_from_writing() -> None:
    lm = HistoryLm(SPEC)
    scheduler = scheduler_of(lm, chunk=64)
    writer, reader = sequence([1], 40), sequence([2] * 80, 1)
    scheduler.add([writer])
    scheduler.step()
    scheduler.add([reader])
    before = len(writer.ids)
    steps = run(scheduler, [reader])
    assert steps == 80 // 4
    assert len(writer.ids) - before == steps, "a token a step"
    assert max(tokens for rows, tokens in lm.calls if rows == 1) <= 4


def test_a_short_prompt_passes_a_long_one_and_none_starves() -> None:
    scheduler = scheduler_of(HistoryLm(SPEC), batch=3)
    long = sequence([2] * 80, 1)
    scheduler.add([sequence([1], 90), long])
    scheduler.step()
    first = sequence([3] * 8, 1)
    scheduler.add([first])
    assert run(scheduler, [first]) <= 3
    assert not long.ended
    steps = 0
    while not long.ended:  # short ones come all the time
        scheduler.add([sequence([4] * 8, 1)])
        scheduler.step()
        steps += 1
        assert steps < 100


def test_callers_share_slots_evenly() -> None:
    """A batch of many prompts leaves room for others as soon as one of its sequences ends."""
    scheduler = scheduler_of(HistoryLm(SPEC), batch=2)
    batch = [sequence([1, index], 5) for index in range(10)]
    for each in batch:
        each.owner = "batch"
    other = sequence([2], 5)
    other.owner = "other"
    scheduler.add(batch)
    scheduler.step()
    scheduler.add([other])
    run(scheduler, [other])
    assert sum(each.ended for each in batch) <= 4


def test_a_higher_priority_takes_a_slot_and_gives_it_back() -> None:
    scheduler = scheduler_of(HistoryLm(SPEC), batch=1)
    low, high = sequence([1, 2, 3], 20), sequence([4], 3, priority=1)
    scheduler.add([low])
    for _ in range(5):
        scheduler.step()
    scheduler.add([high])
    assert run(scheduler, [high]) <= 3
    assert not low.ended
    assert scheduler.status.preemptions == 1
    run(scheduler, [low])
    assert low.ids == greedy([1, 2, 3], 20, SPEC)


def test_the_cache_never_holds_more_than_its_limit() -> None:
    scheduler = scheduler_of(HistoryLm(SPEC), limits=Limits(piece=4, alone=8, kv_tokens=50))
    sequences = [sequence([index] * 12, 25) for index in range(6)]
    scheduler.add(sequences)
    while not all(each.ended for each in sequences):
        scheduler.step()
        assert scheduler.status.kv_tokens <= 50
    assert [each.ids for each in sequences] == [greedy([index] * 12, 25, SPEC) for index in range(6)]


def test_a_stream_that_nobody_reads_gives_up_its_slot() -> None:
    scheduler = scheduler_of(HistoryLm(SPEC), batch=1, limits=Limits(unread=5))
    left = sequence([1, 2], 50)
    left.stream = deque()
    scheduler.add([left])
    for _ in range(8):
        scheduler.step()
    written = len(left.ids)
    assert written > 5, "alone it goes on"
    other = sequence([3], 4)
    scheduler.add([other])
    assert run(scheduler, [other]) <= 5
    assert len(left.ids) == written
    left.stream.clear()
    run(scheduler, [left])
    assert left.ids == greedy([1, 2], 50, SPEC)


def test_prompts_that_begin_alike_are_read_once() -> None:
    """Also by requests that come at the same time; and turns of a chat read only what is new."""
    lm = HistoryLm(SPEC)
    scheduler = scheduler_of(lm, chunk=64, prefixes=1 << 20, limits=Limits(piece=64, alone=64))
    shared = list(range(30))
    both = [sequence([*shared, 1, 2], 6), sequence([*shared, 3, 4], 6)]
    scheduler.add(both)
    run(scheduler, both)
    assert [each.cached_tokens for each in both] == [0, 16]
    assert [each.ids for each in both] == [greedy([*shared, *end], 6, SPEC) for end in ((1, 2), (3, 4))]
    turn = [*shared, 1, 2, *both[0].ids, 11, 12, 13]
    lm.calls.clear()
    third = sequence(turn, 6)
    scheduler.add([third])
    run(scheduler, [third])
    assert third.cached_tokens == len(turn) // 16 * 16 - 16 * (len(turn) % 16 == 1)
    assert lm.calls[0] == (1, len(turn) - third.cached_tokens)
    assert third.ids == greedy(turn, 6, SPEC)
    assert scheduler.status.prefix_hit_tokens == 16 + third.cached_tokens
    assert scheduler.status.prefix_query_tokens == 32 + 32 + len(turn)


def test_an_answer_without_finite_numbers_ends_its_own_sequence_only() -> None:
    scheduler = scheduler_of(HistoryLm(SPEC))
    broken, right = sequence([1, 2], 12), sequence([3, 4], 12)

    def fail(*_: object) -> int:
        raise EngineError("logits: the highest is nan")

    scheduler.add([broken, right])
    scheduler.step()
    broken.sampler = fail  # type: ignore[assignment]
    run(scheduler, [broken, right])
    assert isinstance(broken.error, EngineError)
    assert right.ids == greedy([3, 4], 12, SPEC)


def test_a_job_is_done_beside_sequences_or_alone() -> None:
    scheduler = scheduler_of(HistoryLm(SPEC), batch=2)
    slots: list[int] = []

    def read(slot: int) -> Iterator[None]:
        for _ in range(3):
            slots.append(slot)
            yield

    writer = sequence([1], 10)
    beside, alone = ReadingJob(read, alone=False), ReadingJob(read, alone=True)
    scheduler.add([writer])
    scheduler.step()
    scheduler.add([beside, alone])
    for _ in range(5):
        scheduler.step()
    assert (beside.ended, alone.ended, slots) == (True, False, [1, 1, 1])
    for _ in range(50):
        scheduler.step()
    assert alone.ended
    assert slots[3:] == [0, 0, 0]
    assert writer.ids == greedy([1], 10, SPEC)


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_after_any_exception_all_is_empty_and_goes_on(error: BaseException) -> None:
    lm = HistoryLm(SPEC)
    scheduler = scheduler_of(lm, batch=2)
    running, waiting = [sequence([1], 9), sequence([2], 9)], sequence([3], 9)
    scheduler.add([*running, waiting])
    scheduler.step()

    def fail() -> None:
        lm.before = lambda: None
        raise error

    lm.before = fail
    with pytest.raises(type(error)):
        scheduler.step()
    assert all(each.error is not None for each in running)
    run(scheduler, [waiting])
    assert waiting.ids == greedy([3], 9, SPEC)


def test_a_bug_while_a_sequence_is_admitted_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = scheduler_of(HistoryLm(SPEC), batch=2)
    running, waiting = sequence([1], 9), sequence([2], 9)
    scheduler.add([running])
    scheduler.step()

    def admit(*_: object) -> None:
        raise ValueError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(HostDecoder, "admit", admit)
        scheduler.add([waiting])
        for each in (running, waiting):
            with pytest.raises(ValueError, match="a bug"):
                scheduler.step()
            assert isinstance(each.error, ValueError)
    after = sequence([3], 9)
    scheduler.add([after])
    run(scheduler, [after])
    assert after.ids == greedy([3], 9, SPEC)
