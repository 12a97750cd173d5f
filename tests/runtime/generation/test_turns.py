"""Who works when several requests want the decoder, and what a request that is left, late or broken does to others."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from adaptc.runtime import EngineError, RequestError, Result, Session
from adaptc.runtime.text.tokenizer import Tokenizer
from tests.models.history_lm import HistoryLm, greedy
from tests.runtime.generation.text_lm import PROMPT, SPEC, Clock, expected


def in_thread(ask: Callable[[], Any], patience: float = 20) -> Any:
    """What a function returns or raises in a thread of its own."""
    returned: list[Any] = []

    def run() -> None:
        try:
            returned.append(ask())
        except Exception as error:
            returned.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(patience)
    assert returned, "it hangs"
    return returned[0]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_stream_that_is_not_read_holds_nobody(session: Session, tokenizer: Tokenizer, elsewhere: bool) -> None:
    """Both are written side by side; its reader misses nothing, and what it does not read is not waited for."""
    stream = session.generate(PROMPT, max_new_tokens=50, stream=True)
    first = next(stream)

    def ask() -> Result:
        return session.generate("other", max_new_tokens=9)

    other = in_thread(ask) if elsewhere else ask()
    assert other.text == expected(tokenizer, 9, "other")
    with pytest.raises(RequestError, match="has not ended"):
        _ = stream.result
    assert first + "".join(stream) == expected(tokenizer, 50) == stream.result.text


def test_two_streams_that_are_read_in_turn(session: Session, tokenizer: Tokenizer) -> None:
    streams = [session.generate(prompt, max_new_tokens=20, stream=True) for prompt in ("a", "b", "c")]
    texts = ["", "", ""]
    for _ in range(20):
        for index, stream in enumerate(streams):
            texts[index] += next(stream, "")
    assert texts == [expected(tokenizer, 20, prompt) for prompt in ("a", "b", "c")]


def test_a_stream_whose_thread_has_ended(session: Session, tokenizer: Tokenizer) -> None:
    streams: list[Iterator[str]] = []

    def begin() -> str:
        streams.append(session.generate(PROMPT, max_new_tokens=20, stream=True))
        return next(streams[0])

    first = in_thread(begin)
    assert session.generate("other", max_new_tokens=5).text == expected(tokenizer, 5, "other")
    assert first + "".join(streams[0]) == expected(tokenizer, 20)


def test_threads_may_share_a_stream(session: Session, tokenizer: Tokenizer) -> None:
    stream = session.generate(PROMPT, max_new_tokens=60, stream=True)
    read: list[str] = []
    threads = [threading.Thread(target=lambda: read.extend(stream)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(read) == sorted(session.generate(PROMPT, max_new_tokens=60, stream=True))
    assert stream.result.text == expected(tokenizer, 60)


def test_scores_and_requests_beside_a_stream(session: Session, tokenizer: Tokenizer) -> None:
    alone = session.score("a text").values
    stream = session.generate(PROMPT, max_new_tokens=20, stream=True)
    text = next(stream)
    assert (session.score("a text").values == alone).all()
    assert text + "".join(stream) == expected(tokenizer, 20)


def test_a_deadline_ends_a_request(session: Session, lm: HistoryLm, clock: Clock, tokenizer: Tokenizer) -> None:
    def step() -> None:
        clock.now += 1

    lm.before = step
    result = session.generate(PROMPT, max_new_tokens=50, deadline=4.5)
    assert (list(result.ids), result.finish_reason) == (greedy(tokenizer.encode(PROMPT), 5, SPEC), "deadline")
    both = session.generate([PROMPT, "b", "c"], max_new_tokens=3, deadline=4.5)
    assert [(len(each.ids), each.finish_reason) for each in both] == [(3, "length"), (3, "length"), (1, "deadline")]
    assert session.generate(PROMPT, max_new_tokens=5, deadline=100).finish_reason == "length"


def test_a_deadline_may_pass_while_others_write(session: Session, lm: HistoryLm, clock: Clock) -> None:
    stream = session.generate(PROMPT, max_new_tokens=50, stream=True)
    next(stream)

    def step() -> None:
        clock.now += 1

    lm.before = step
    late = session.generate("other", deadline=3)
    assert (len(late.ids), late.finish_reason) == (3, "deadline"), "a prompt, and two steps for both"
    assert len("".join(stream)) > 0
    assert stream.result.finish_reason == "length", "the other's deadline is not its own"


def test_a_deadline_passes_for_a_stream_that_is_not_read(session: Session, lm: HistoryLm, clock: Clock) -> None:
    stream = session.generate(PROMPT, deadline=10, stream=True)
    piece = next(stream)
    calls = len(lm.calls)
    clock.now += 11
    assert (stream.result.text, stream.result.finish_reason) == (piece, "deadline")
    assert list(stream) == []
    assert session.generate(PROMPT, max_new_tokens=2).ids
    assert len(lm.calls) == calls + 2


def test_an_error_of_a_step_is_that_of_all_who_take_part(session: Session, lm: HistoryLm, tokenizer: Tokenizer) -> None:
    stream = session.generate(PROMPT, max_new_tokens=50, stream=True)
    next(stream)
    ends = len(lm.calls) + 10

    def fail() -> None:
        if len(lm.calls) == ends:
            lm.before = lambda: None
            raise EngineError("engine: out of luck")

    lm.before = fail
    with pytest.raises(EngineError, match=r"^engine: out of luck$"):
        session.generate("other", max_new_tokens=20)
    with pytest.raises(EngineError, match=r"^engine: out of luck$"):
        list(stream)
    with pytest.raises(EngineError, match=r"^engine: out of luck$"):
        _ = stream.result
    assert session.generate("other", max_new_tokens=20).text == expected(tokenizer, 20, "other")


def test_an_error_while_a_prompt_is_read_is_that_of_its_request(
    session: Session, lm: HistoryLm, tokenizer: Tokenizer
) -> None:
    stream = session.generate(PROMPT, max_new_tokens=50, stream=True)
    first = next(stream)

    def fail() -> None:
        lm.before = lambda: None
        raise EngineError("engine: out of luck")

    lm.before = fail
    with pytest.raises(EngineError, match=r"^engine: out of luck$"):
        session.generate("other", max_new_tokens=20)
    assert first + "".join(stream) == expected(tokenizer, 50)


def test_closing_while_another_thread_works(session: Session, lm: HistoryLm) -> None:
    """`close` waits for nobody; the memory is freed after the step that is running."""
    begun, goes_on = threading.Event(), threading.Event()
    errors: list[Exception] = []

    def step() -> None:
        begun.set()
        assert goes_on.wait(10)

    def ask() -> None:
        try:
            session.generate(PROMPT)
        except RequestError as error:
            errors.append(error)

    lm.before = step
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    session.close()
    assert lm.engine.function is not None, "the engine is still in use"
    goes_on.set()
    for thread in threads:
        thread.join(10)
    assert [str(error) for error in errors] == ["session: closed"] * 3
    assert lm.engine.function is None
    assert len(lm.calls) == 1


class InterruptionError(Exception):
    """What a signal handler raises."""


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], None]], Callable[[], None]]]:
    """Makes a function that has a signal handler run another one in this thread."""
    before = signal.getsignal(signal.SIGUSR1)

    def of(handler: Callable[[], None]) -> Callable[[], None]:
        signal.signal(signal.SIGUSR1, lambda *_: handler())
        return lambda: signal.raise_signal(signal.SIGUSR1)

    yield of
    signal.signal(signal.SIGUSR1, before)


def raise_interruption() -> None:
    raise InterruptionError


def test_an_exception_of_a_signal_handler_leaves_the_session_usable(
    session: Session, lm: HistoryLm, tokenizer: Tokenizer, interrupt: Callable[..., Callable[[], None]]
) -> None:
    lm.before = interrupt(raise_interruption)
    with pytest.raises(InterruptionError):
        session.generate(PROMPT)
    lm.before = lambda: None
    assert in_thread(lambda: session.generate(PROMPT, max_new_tokens=5)).text == expected(tokenizer, 5)


def test_an_exception_of_a_signal_handler_in_the_step_of_another(
    session: Session, lm: HistoryLm, tokenizer: Tokenizer, interrupt: Callable[..., Callable[[], None]]
) -> None:
    """Both learn of it: the thread that was interrupted, and the reader of the stream whose step it was."""
    stream = session.generate(PROMPT, stream=True)
    next(stream)
    lm.before = interrupt(raise_interruption)
    with pytest.raises(InterruptionError):
        session.generate("other")
    lm.before = lambda: None
    with pytest.raises(InterruptionError):
        list(stream)
    assert in_thread(lambda: session.generate(PROMPT, max_new_tokens=5)).text == expected(tokenizer, 5)


def test_ctrl_c_in_the_step_of_another(session: Session, lm: HistoryLm) -> None:
    def ctrl_c() -> None:
        raise KeyboardInterrupt

    stream = session.generate(PROMPT, stream=True)
    piece = next(stream)
    lm.before = ctrl_c
    with pytest.raises(KeyboardInterrupt):
        session.generate("other")
    lm.before = lambda: None
    with pytest.raises(RequestError, match=r"^session: KeyboardInterrupt interrupted the step; ask again$"):
        list(stream)
    assert (stream.result.text, stream.result.finish_reason) == (piece, "cancelled")


def test_a_signal_handler_cannot_use_the_session_in_the_middle_of_a_step(
    session: Session, lm: HistoryLm, tokenizer: Tokenizer, interrupt: Callable[..., Callable[[], None]]
) -> None:
    refused: list[str] = []

    def ask() -> None:
        with pytest.raises(RequestError, match=r"^session: this thread is in the middle of a step") as error:
            session.generate("other", max_new_tokens=1)
        refused.append(str(error.value))

    lm.before = interrupt(ask)
    assert session.generate(PROMPT, max_new_tokens=3).text == expected(tokenizer, 3)
    assert len(refused) == 3
