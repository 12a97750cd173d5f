"""No call of the public API gives a traceback, whatever its arguments are, and no call is lost or answered wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc import runtime
from adaptc.runtime import AdaptcError, JobQueue, ModalSession, Sampling, Session
from adaptc.runtime.generation.request import request_of
from adaptc.runtime.text.tokenizer import Tokenizer
from tests.attacks.calls import JUNK, RIGHT, attack, draw, outcome
from tests.models import views_model
from tests.models.history_lm import HistoryLm, decoder_spec
from tests.models.routed_lm import RoutedLm
from tests.models.sessions import session_of
from tests.models.tiny_tokenizer import byte_level, files

STORED = Path(__file__).parents[1] / "stored" / "schema3" / "gated"
SPEC = decoder_spec(vocab=320, max_tokens=60)
TOKENIZER = Tokenizer(files(byte_level()))
QUICK = settings(deadline=None, derandomize=True, max_examples=60)

VALUES = st.one_of(
    st.sampled_from(JUNK).map(lambda make: make()),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
)
"""Anything that a caller may give."""


def session() -> Session:
    return session_of(HistoryLm(SPEC).engine, SPEC, TOKENIZER, batch=2)


def refused(call: Callable[[], object]) -> str | None:
    """The message of a refusal; None if there was none. Other exceptions pass."""
    try:
        call()
    except AdaptcError as error:
        message = str(error)
        assert len(message.splitlines()) == 1, message
        return message
    return None


@pytest.mark.parametrize("routed", [False, True])
def test_calls_from_threads_and_coroutines(routed: bool) -> None:
    def of_routes() -> Session:
        return RoutedLm(SPEC).session(batch=2, tokenizer=TOKENIZER)

    make = of_routes if routed else session
    with make() as shared, make() as alone:
        report = attack(shared, alone, 250, seed=7, patience=120)
    assert report.faults == (), report
    ended = {how for _, how in report.counts}
    assert ended == {"result", "refused", "cut"}
    assert sum(count for (_, how), count in report.counts.items() if how == "result") > 50


def test_a_fault_is_found() -> None:
    """A negative control: an answer of another model, a traceback, and a call that never ends."""
    other = decoder_spec(vocab=319, max_tokens=60)
    with session() as shared, session_of(HistoryLm(other).engine, other, TOKENIZER) as alone:
        report = attack(shared, alone, 60, seed=7)
    assert any(fault.startswith("WRONG: call ") for fault in report.faults)
    lm = HistoryLm(SPEC)

    def fail() -> None:
        raise ZeroDivisionError

    lm.before = fail
    with session_of(lm.engine, SPEC, TOKENIZER) as broken, session() as alone:
        report = attack(broken, alone, 60, seed=7)
    assert any("ZeroDivisionError" in fault for fault in report.faults)
    assert "60 calls: " in str(report)


@QUICK
@given(st.randoms(use_true_random=False))
def test_no_call_gives_a_traceback(random: Any) -> None:
    call = draw(random)
    with session() as running:
        how, what = outcome(running, call, random)
        assert how in ("result", "refused", "cut"), what
        assert running.generate([1, 2], max_new_tokens=1).ids, "the session is as it was"


@QUICK
@given(st.dictionaries(st.sampled_from(sorted(RIGHT)) | st.text(max_size=5), VALUES, max_size=3))
def test_any_options(options: dict[str, Any]) -> None:
    refused(lambda: request_of(options))
    chosen = {name: value for name, value in options.items() if name in Sampling.__slots__}
    refused(lambda: Sampling(**chosen))


@QUICK
@given(
    st.dictionaries(
        st.sampled_from(["path", "device", "threads", "batch", "chunk", "cache_bytes", "verify", "budget"]),
        VALUES,
        min_size=1,
        max_size=2,
    ),
    st.sampled_from([runtime.load, runtime.load_modal, runtime.load_tokenizer]),
)
def test_loading_with_anything(options: dict[str, Any], load: Any) -> None:
    path = options.pop("path", STORED)
    known = {"load_modal": ("threads", "cache_bytes", "verify"), "load_tokenizer": ("verify",)}.get(load.__name__)
    given_ = {name: value for name, value in options.items() if known is None or name in known}

    def call() -> None:
        loaded = load(path, **given_)
        if not isinstance(loaded, Tokenizer):
            loaded.close()

    refused(call)


@pytest.fixture(scope="module")
def modal() -> Iterator[tuple[ModalSession, JobQueue]]:
    with views_model.session() as running, running.jobs() as jobs:
        yield running, jobs


@QUICK
@given(
    st.dictionaries(st.sampled_from(["cheap", "dear", "x"]) | st.text(max_size=2), VALUES, max_size=2) | VALUES,
    st.dictionaries(st.sampled_from(["accuracy", "deadline_ms", "modalities"]), VALUES, max_size=2),
    st.booleans(),
)
def test_inferring_with_anything(
    modal: tuple[ModalSession, JobQueue], inputs: Any, options: dict[str, Any], right: bool
) -> None:
    running, jobs = modal
    given_ = views_model.rows(2) if right else inputs
    refused(lambda: running.infer(given_, **options))
    asked = {name: value for name, value in options.items() if name != "modalities"}
    refused(lambda: jobs.submit(given_, **asked))
    assert running.infer(views_model.rows(1)).outputs


def test_numbers_of_numpy_are_numbers() -> None:
    with session() as running:
        one = running.generate(
            [1, 2], max_new_tokens=np.int64(3), temperature=np.float32(0.5), top_k=np.int8(3), seed=np.uint32(7)
        )
        other = running.generate([1, 2], max_new_tokens=3, temperature=0.5, top_k=3, seed=7)
    assert one.ids == other.ids
