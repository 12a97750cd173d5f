from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc.runtime import DecoderSpec, EngineError, RequestError, Result, Sampling, Session
from adaptc.runtime.backends.engine import Arrays
from tests.models.history_lm import HistoryLm, decoder_spec, greedy, logits_after
from tests.models.sessions import session_of

QUICK = settings(deadline=None, derandomize=True, max_examples=40)
PROMPT = st.lists(st.integers(0, 49), min_size=1, max_size=20)


def session(spec: DecoderSpec | None = None, batch: int = 1, chunk: int = 512) -> Session:
    lm = HistoryLm(spec or decoder_spec())
    return session_of(lm.engine, lm.spec, batch=batch, chunk=chunk)


@QUICK
@given(PROMPT, st.integers(1, 20), st.integers(1, 8))
def test_chunked_prefill_equals_the_model(prompt: list[int], count: int, chunk: int) -> None:
    with session(chunk=chunk) as running:
        ids = running.generate(prompt, max_new_tokens=count).ids
    assert list(ids) == greedy(prompt, count, decoder_spec())


@QUICK
@given(st.lists(PROMPT, min_size=1, max_size=7), st.integers(1, 4), st.sets(st.integers(0, 49), max_size=12))
def test_a_ragged_batch_equals_single_prompts(prompts: list[list[int]], batch: int, eos: set[int]) -> None:
    spec = decoder_spec(eos=tuple(eos))
    with session(spec, batch, chunk=5) as running:
        results = running.generate(prompts, max_new_tokens=9)
    assert [list(result.ids) for result in results] == [greedy(prompt, 9, spec) for prompt in prompts]
    assert all((result.finish_reason == "eos") == (result.ids[-1] in eos) for result in results)


def test_a_free_row_takes_the_next_prompt() -> None:
    lm = HistoryLm(decoder_spec())
    prompts = [[index] for index in range(5)]
    with session_of(lm.engine, lm.spec, batch=2) as running:
        running.generate(prompts, max_new_tokens=3)
    assert lm.calls == [(1, 1), (1, 1), (2, 1), (2, 1)] * 2 + [(1, 1)] * 3


def test_prompts_are_read_in_chunks_and_memory_is_allocated_once() -> None:
    lm = HistoryLm(decoder_spec())
    with session_of(lm.engine, lm.spec, chunk=8) as running:
        running.generate(list(range(20)), max_new_tokens=3)
        assert lm.calls == [(1, 8), (1, 8), (1, 4), (1, 1), (1, 1)]
        seen = set(lm.addresses)
        running.generate(list(range(30)), max_new_tokens=3)
        assert lm.addresses == seen


@pytest.mark.parametrize(("tokens", "room"), [(1, 40), (39, 2), (40, 1)])
def test_the_cache_limits_the_answer(tokens: int, room: int) -> None:
    with session() as running:
        result = running.generate([3] * tokens, max_new_tokens=1000)
    assert (len(result.ids), result.finish_reason, result.prompt_tokens) == (room, "length", tokens)


def test_ids_may_be_an_array() -> None:
    with session() as running:
        result = running.generate(np.array([1, 2]), max_new_tokens=4)
    assert list(result.ids) == greedy([1, 2], 4, decoder_spec())


def test_an_empty_prompt_is_bos_if_there_is_one() -> None:
    nothing: list[list[int]] = [[]]
    with session(decoder_spec(bos=7)) as running:
        assert list(running.generate(nothing, max_new_tokens=4)[0].ids) == greedy([7], 4, decoder_spec())
        assert list(running.generate(np.array([]), max_new_tokens=4).ids) == greedy([7], 4, decoder_spec())
    with (
        session() as running,
        pytest.raises(RequestError, match=r"^prompt: empty, and this model has no"),
    ):
        running.generate(nothing)


def test_a_batch_of_nothing_is_nothing() -> None:
    nothing: list[str] = []
    with session() as running:
        assert running.generate(nothing) == []
        assert running.generate(nothing, images=[]) == []
        with pytest.raises(RequestError, match=r"^stream: only one prompt"):
            running.generate(nothing, stream=True)  # type: ignore[call-overload]


BAD_REQUESTS: list[tuple[dict[str, object], str]] = [
    ({"prompt": [1] * 41}, "prompt: 41 tokens; this bundle holds 40: shorten it, or compile"),
    ({"prompt": [1, 50]}, "prompt: token id 50; ids go from 0 to 49"),
    ({"prompt": [-1]}, "prompt: token id -1; ids go from 0 to 49"),
    ({"prompt": [2**70]}, "prompt: list; a text or a list of token ids is needed"),
    ({"prompt": [1.5]}, "prompt: float; a text or a list of token ids is needed"),
    ({"prompt": None}, "prompt: NoneType; a text or a list of token ids is needed"),
    ({"prompt": b"hello"}, "prompt: bytes; a text or a list of token ids is needed"),
    ({"prompt": [[1, 2], [[3]]]}, "prompt: list; a text or a list of token ids is needed"),
    ({"prompt": "hello"}, "a text as prompt: this bundle has no tokenizer; token ids are needed"),
    ({"max_new_tokens": 0}, "max_new_tokens: 0; a whole number from 1 is needed"),
    ({"max_new_tokens": True}, "max_new_tokens: True; a whole number from 1 is needed"),
    ({"max_new_tokens": 1.0}, r"max_new_tokens: 1\.0; a whole number from 1 is needed"),
    ({"seed": -1}, "seed: -1; a whole number from 0 is needed"),
    ({"seed": "x"}, "seed: 'x'; a whole number from 0 is needed"),
    ({"sampling": {"top_k": 1}}, r"sampling: \{'top_k': 1\}; a Sampling is needed"),
    ({"stop": ""}, "stop: ''; each must be a string of at least one character"),
    ({"stop": ["a", 1]}, "stop: 1; each must be a string of at least one character"),
    ({"stop": "a"}, "stop strings: this bundle has no tokenizer; token ids are needed"),
    ({"prompt": [[1], [2]], "stream": True}, "stream: only one prompt at a time can be streamed"),
]


@pytest.mark.parametrize(("options", "message"), BAD_REQUESTS)
def test_refuses_what_cannot_be(options: dict[str, object], message: str) -> None:
    with session() as running:
        with pytest.raises(RequestError, match=f"^{message}"):
            running.generate(**{"prompt": [1], **options})  # type: ignore[call-overload]
        assert running.generate([1], max_new_tokens=2).ids, "a refused request leaves the session as it was"


@pytest.mark.parametrize("options", [{"batch": 0}, {"chunk": 0}, {"batch": 10**15}])
def test_refuses_sizes_that_cannot_be(options: dict[str, int]) -> None:
    lm = HistoryLm(decoder_spec())
    with pytest.raises(RequestError, match=f"^{next(iter(options))}: "):
        session_of(lm.engine, lm.spec, **options)  # type: ignore[arg-type]


def sampled(running: Session, prompt: Sequence[int], seed: int | None) -> tuple[int, ...]:
    return running.generate(prompt, max_new_tokens=15, sampling=Sampling(temperature=2), seed=seed).ids


def test_a_seed_makes_sampling_repeatable() -> None:
    with session(batch=3) as running:
        first = sampled(running, [1, 2], 5)
        assert first == sampled(running, [1, 2], 5)
        assert first != sampled(running, [1, 2], 6)
        assert sampled(running, [1, 2], None) != sampled(running, [1, 2], None)
        batch = running.generate([[1, 2], [1, 2]], max_new_tokens=15, sampling=Sampling(temperature=2), seed=5)
        assert batch[0].ids == first
        assert batch[1].ids != first, "equal prompts of a batch get answers of their own"


def test_the_repetition_penalty_counts_prompt_and_answer() -> None:
    with session() as running:
        ids = running.generate([1, 2, 3], max_new_tokens=30, sampling=Sampling(repetition_penalty=100)).ids
    history = [1, 2, 3]
    for token in ids:
        # Logits are 0 or below, so the penalty leaves the highest that is new, or a 0 that is not.
        logits = logits_after(history, 50)
        logits[list(set(history))] *= 100
        assert token == logits.argmax()
        history.append(token)


def test_the_trace_adds_up() -> None:
    with session() as running:
        result = running.generate([1, 2, 3], max_new_tokens=6)
    trace = result.trace
    assert (trace.prompt_tokens, trace.new_tokens) == (3, 6)
    assert 0 < trace.prefill_seconds <= trace.time_to_first_token_seconds
    assert trace.decode_tokens_per_second == pytest.approx(5 / trace.decode_seconds)
    assert trace.prefill_tokens_per_second == pytest.approx(3 / trace.prefill_seconds)


def test_a_failing_engine_leaves_the_session_usable() -> None:
    lm = HistoryLm(decoder_spec())
    with session_of(lm.engine, lm.spec, batch=2) as running:
        expected = running.generate([[1, 2], [3]], max_new_tokens=5)

        def fail() -> None:
            if len(lm.calls) == 9:
                raise EngineError("engine: out of luck")

        lm.before = fail
        lm.calls.clear()
        with pytest.raises(EngineError, match=r"^engine: out of luck$"):
            running.generate([[1, 2], [3], [4], [5]], max_new_tokens=5)
        lm.before = lambda: None
        again = running.generate([[1, 2], [3]], max_new_tokens=5)
    assert [result.ids for result in again] == [result.ids for result in expected]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_an_engine_error(value: float) -> None:
    lm = HistoryLm(decoder_spec())
    run = lm.engine.function
    assert run is not None

    def broken(feeds: Arrays, outputs: Arrays) -> None:
        outputs["logits"][...] = value

    with session_of(lm.engine, lm.spec) as running:
        lm.engine.function = broken
        with pytest.raises(EngineError, match=r"^logits: the highest is (nan|inf|-inf)"):
            running.generate([1])


@QUICK
@given(PROMPT, st.integers(1, 8), st.booleans())
def test_score_is_the_log_probability_of_each_token(ids: list[int], chunk: int, step: bool) -> None:
    with session(chunk=chunk) as running:
        scores = running.score(ids, step=step).values
    logits = [logits_after(ids[:n], 50).astype(np.float64) for n in range(1, len(ids))]
    expected = [row[token] - np.log(np.exp(row).sum()) for row, token in zip(logits, ids[1:], strict=True)]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, np.array(expected, np.float32).reshape(-1), rtol=1e-5, atol=1e-5)


def test_score_refuses_what_cannot_be() -> None:
    with session() as running:
        with pytest.raises(RequestError, match=r"^prompt: 41 tokens"):
            running.score([1] * 41)
        assert running.score([1] * 40).values.shape == (39,)


def test_a_closed_session_says_so() -> None:
    running = session()
    running.close()
    running.close()
    for use in (lambda: running.generate([1]), lambda: running.score([1, 2])):
        with pytest.raises(RequestError, match=r"^session: closed$"):
            use()


def test_results_are_typed() -> None:
    with session() as running:
        one: Result = running.generate([1], max_new_tokens=1)
        many: list[Result] = running.generate([[1]], max_new_tokens=1)
    assert [one.ids] == [many[0].ids]
