"""Answers with drafts are those without, to the token; here drafts always pay, and are as wrong as a test wants."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc.runtime import DecoderSpec, EngineError, RequestError, Session
from adaptc.runtime.backends.host.prefix_cache import PrefixCache
from adaptc.runtime.generation.scheduler import Limits, Scheduler
from adaptc.runtime.model.verifier import Verified
from adaptc.runtime.speculation.drafter import Draft
from adaptc.runtime.speculation.speculation import Speculation
from adaptc.runtime.text.tokenizer import Tokenizer
from tests.models.history_lm import decoder_spec, greedy
from tests.models.verifying_lm import FreeDrafts, VerifyingLm, speculation
from tests.runtime.generation.test_scheduler import ENDING, EVENTS, Event, replay_events, run, sequence
from tests.runtime.generation.text_lm import PROMPT, SPEC

QUICK = settings(deadline=None, max_examples=40)
PROMPTS = [[1, 2, 3], [4], [9] * 20, [7, 8]]
WRONG = [0.0, 0.3, 1.0]


@dataclass
class Odd:
    """A rule, as a grammar is one: tokens are odd after an even one, and whatever they are after an odd one."""

    newest: int = 1
    seen: list[int] = field(default_factory=list)

    def before(self, logits: npt.NDArray[np.float32]) -> None:
        if self.newest % 2 == 0:
            logits[::2] = -np.inf

    def after(self, token: int) -> None:
        self.newest = token
        self.seen.append(token)


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 1.0, "seed": 5},
    "filters": {"temperature": 2.0, "top_p": 0.8, "top_k": 20, "min_p": 0.01, "seed": 6},
    "penalties": {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.3},
    "sampled penalties": {"temperature": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.3, "seed": 7},
    "bias": {"logit_bias": {3: 4.0, 11: -100.0}},
    "rules": {"rules": [Odd]},
    "sampled rules": {"rules": [Odd], "temperature": 1.0, "seed": 8},
    "least": {"min_new_tokens": 12, "stop_token_ids": list(range(0, 50, 3))},
    "stop tokens": {"stop_token_ids": list(range(0, 50, 9))},
    "one": {"max_new_tokens": 1},
    "two": {"max_new_tokens": 2},
    "full": {"max_new_tokens": 1000},
}


def session(
    wrong: float = 0.3,
    spec: DecoderSpec | None = None,
    batch: int = 1,
    tokenizer: Tokenizer | None = None,
    *,
    drafts: bool = True,
    close: float = 0.0,
) -> Session:
    decoder = VerifyingLm(spec or decoder_spec(max_tokens=60)).decoder(batch)
    found = speculation(decoder, wrong, close=close) if drafts else None
    return Session(decoder, tokenizer, speculation=found, speculate="auto" if drafts else None)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("eos", [(), (7, 21)])
def test_answers_are_those_without_drafts(options: dict[str, Any], wrong: float, eos: tuple[int, ...]) -> None:
    """One prompt after another, and several in one step."""
    given = {"max_new_tokens": 30, **options}
    spec = decoder_spec(max_tokens=60, eos=eos)
    with session(spec=spec, drafts=False) as plain:
        expected = [plain.generate(prompt, **given) for prompt in PROMPTS]
    for batch in (1, 3):
        with session(wrong, spec, batch) as drafting:
            alone = [drafting.generate(prompt, **given) for prompt in PROMPTS]
            together = drafting.generate(PROMPTS, **given)
        for results in (alone, together):
            if "seed" in options and results is together:
                continue  # places in a batch have seeds of their own
            assert [each.ids for each in results] == [each.ids for each in expected]
            assert [each.finish_reason for each in results] == [each.finish_reason for each in expected]
        drafted = sum(each.trace.drafted for each in alone)
        assert (drafted > 0) == any(len(each.ids) > 2 for each in expected)
        accepted = sum(each.trace.accepted for each in alone)
        if options.keys() <= {"max_new_tokens"} and not eos:  # the model's own tokens, and none that ends the text
            assert {0.0: accepted == drafted, 0.3: accepted <= drafted, 1.0: accepted == 0}[wrong]


@pytest.mark.parametrize("wrong", WRONG)
def test_sampled_batches_are_those_without_drafts(wrong: float) -> None:
    given: dict[str, Any] = {"max_new_tokens": 30, "temperature": 1.5, "top_p": 0.9, "seed": 3}
    with session(batch=3, drafts=False) as plain:
        expected = plain.generate(PROMPTS, **given)
    with session(wrong, batch=3) as drafting:
        assert [each.ids for each in drafting.generate(PROMPTS, **given)] == [each.ids for each in expected]


def test_the_distribution_is_that_of_the_model() -> None:
    """Exactly, as every seed draws what it draws without drafts; and by chi-square, with the drafts all alike."""
    given: dict[str, Any] = {"max_new_tokens": 3, "temperature": 1.0}
    seeds = range(400)
    with session(drafts=False) as plain, session(0.0) as drafting:
        expected = [plain.generate([1, 2], seed=seed, **given).ids for seed in seeds]
        found = [drafting.generate([1, 2], seed=seed, **given) for seed in seeds]
    assert [each.ids for each in found] == expected
    assert 0 < sum(each.trace.accepted for each in found) < sum(each.trace.drafted for each in found)
    firsts = Counter(each.ids[0] for each in found)
    weights = np.exp(-np.arange(50) / 2)
    shares = np.sort(weights / weights.sum())[::-1]
    counts = np.array(sorted((firsts[token] for token in range(50)), reverse=True)[:6])
    chi = float(((counts - 400 * shares[:6]) ** 2 / (400 * shares[:6])).sum())
    assert chi < 25, "of some 6 degrees of freedom, sorted; 0.0004 of draws are above"


@pytest.mark.parametrize("wrong", WRONG)
def test_streams_deliver_every_piece(wrong: float, tokenizer: Tokenizer) -> None:
    with (
        session(spec=SPEC, tokenizer=tokenizer, drafts=False) as plain,
        session(wrong, SPEC, tokenizer=tokenizer) as ours,
    ):
        whole = plain.generate(PROMPT, max_new_tokens=60)
        stop = whole.text[20:24]
        choices: list[dict[str, Any]] = [
            {},
            {"stop": stop},
            {"stop": stop, "min_new_tokens": 40},
            {"stop": whole.text[-1] + "never"},
        ]
        for options in choices:
            expected = plain.generate(PROMPT, max_new_tokens=60, **options)
            stream = ours.generate(PROMPT, max_new_tokens=60, stream=True, **options)
            pieces = [*stream]
            assert "".join(pieces) == expected.text == stream.result.text
            assert all(pieces)
            result = stream.result
            assert (result.ids, result.finish_reason) == (expected.ids, expected.finish_reason)
            assert result.trace.drafted > 0


def test_a_stream_that_is_closed_in_the_middle_leaves_the_others(tokenizer: Tokenizer) -> None:
    with session(0.2, SPEC, 2, tokenizer) as running:
        left = running.generate(PROMPT, max_new_tokens=80, stream=True)
        other = running.generate("other", max_new_tokens=40, stream=True)
        next(left), next(other)
        left.close()
        assert list(left.result.ids) == greedy(tokenizer.encode(PROMPT), len(left.result.ids), SPEC)
        assert "".join(other)
        assert list(other.result.ids) == greedy(tokenizer.encode("other"), 40, SPEC)
        assert list(running.generate(PROMPT, max_new_tokens=9).ids) == greedy(tokenizer.encode(PROMPT), 9, SPEC)


def test_traces_say_what_was_drafted() -> None:
    with session(0.0) as running:
        result = running.generate([1, 2, 3], max_new_tokens=30)
        trace = result.trace
        assert (trace.drafter, trace.accepted) == ("oracle", trace.drafted)
        off = running.generate([1, 2, 3], max_new_tokens=30, speculate="off")
        assert (off.trace.drafter, off.trace.drafted, off.trace.accepted) == (None, 0, 0)
        assert off.ids == result.ids
        with pytest.raises(RequestError, match=r"^speculate: 'lookup'; there are: off, auto, oracle$"):
            running.generate([1], speculate="lookup")
    with session(1.0) as running:
        result = running.generate([1, 2, 3], max_new_tokens=30)
        assert result.trace.drafted > result.trace.accepted == 0


def test_fewer_runs_are_needed_where_drafts_are_right() -> None:
    lm = VerifyingLm(decoder_spec(max_tokens=60))
    decoder = lm.decoder()
    with Session(decoder, speculation=speculation(decoder, 0.0), speculate="auto") as running:
        result = running.generate([1, 2, 3], max_new_tokens=40)
    steps = sum(call == (1, 1) for call in lm.calls) + len(lm.verified)
    assert steps == 39 - result.trace.accepted < 20


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


def test_tokens_that_the_model_does_not_know_are_not_verified() -> None:
    """A smaller model's head may have more rows."""

    class Wide:
        def draft(self, ids: Any, most: int, worth: Any = None) -> Draft:
            tokens = (*greedy(list(ids), 1, decoder_spec()), 50, 3)[:most]
            return Draft(tokens, (1.0,) * len(tokens))

        def close(self) -> None:
            pass

    lm = VerifyingLm(decoder_spec(max_tokens=60))
    decoder = lm.decoder()
    drafts = Speculation(decoder, FreeDrafts(), {"wide": lambda _: Wide()})
    with Session(decoder, speculation=drafts, speculate="auto") as running:
        result = running.generate([1, 2, 3], max_new_tokens=20)
    assert list(result.ids) == greedy([1, 2, 3], 20, decoder_spec())
    assert {*lm.verified} == {2}
    assert result.trace.accepted == result.trace.drafted == len(lm.verified)


def shifted(session: Session, by: float) -> Callable[[], int]:
    """Have verifications say of the second best token that it is the best, by very little; how many tokens that met."""
    decoder: Any = session._decoder
    verify, met = decoder.verify, [0]

    def other(slot: int, tokens: Any) -> Verified:
        found: Verified = verify(slot, tokens)
        for logits in found.logits:
            second = (int(logits.argmax()) - 1) % len(logits)
            met[0] += 1
            logits[second] = logits.max() + np.float32(by)
        return found

    decoder.verify = other
    return lambda: met[0]


def test_tokens_that_are_nearly_as_likely_are_computed_again() -> None:
    with session(0.3, close=1e-2) as running:
        met = shifted(running, 1e-3)
        assert list(running.generate([1, 2, 3], max_new_tokens=40).ids) == greedy([1, 2, 3], 40, decoder_spec())
        assert met() > 10
    with session(0.3, close=1e-4) as running:
        shifted(running, 1e-3)
        assert list(running.generate([1, 2, 3], max_new_tokens=40).ids) != greedy([1, 2, 3], 40, decoder_spec())


def test_what_is_computed_again_goes_through_rules_and_penalties_once_more() -> None:
    options: dict[str, Any] = {"max_new_tokens": 30, "rules": [Odd], "repetition_penalty": 1.2, "logit_bias": {5: 0.3}}
    with session(drafts=False) as plain:
        expected = plain.generate([1, 2, 3], **options)
    with session(0.3, close=math.inf) as running:
        assert running.generate([1, 2, 3], **options).ids == expected.ids
