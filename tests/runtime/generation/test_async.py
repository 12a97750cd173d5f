"""Requests of coroutines: results, streams, and what cancelling leaves."""

from __future__ import annotations

import asyncio
import threading

import pytest

from adaptc.runtime import EngineError, RequestError, Result, Session
from adaptc.runtime.text.tokenizer import Tokenizer
from tests.models.history_lm import HistoryLm, greedy
from tests.runtime.generation.text_lm import PROMPT, SPEC, Clock, expected


async def collect(session: Session, prompt: str, count: int) -> str:
    return "".join([piece async for piece in session.generate_async(prompt, max_new_tokens=count)])


def test_coroutines_take_turns(session: Session, tokenizer: Tokenizer) -> None:
    prompts = [f"prompt {index}" for index in range(5)]

    async def main() -> list[str]:
        return await asyncio.gather(*(collect(session, prompt, 15) for prompt in prompts))

    assert asyncio.run(main()) == [expected(tokenizer, 15, prompt) for prompt in prompts]
    session.close()


def test_the_loop_runs_on_while_the_engine_works(session: Session, lm: HistoryLm) -> None:
    """Every step waits for the loop to answer: if the engine held the loop, none ever would."""
    answers: list[bool] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def ask() -> None:
            answered = threading.Event()
            loop.call_soon_threadsafe(answered.set)
            answers.append(answered.wait(10))

        lm.before = ask
        await collect(session, PROMPT, 8)

    asyncio.run(main())
    assert len(answers) >= 8
    assert all(answers)


def test_a_cancelled_task_frees_the_session(session: Session, lm: HistoryLm, tokenizer: Tokenizer) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def step() -> None:
        begun.set()
        assert goes_on.wait(10)

    lm.before = step

    async def main() -> str:
        task = asyncio.create_task(collect(session, PROMPT, 90))
        assert await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        lm.before = lambda: None
        return await collect(session, PROMPT, 5)

    assert asyncio.run(main()) == expected(tokenizer, 5)
    assert len(lm.calls) < 60


def test_a_coroutine_that_waits_can_be_cancelled(session: Session, lm: HistoryLm) -> None:
    """It waits for a step of a thread, which waits until the coroutine was cancelled."""
    begun, goes_on = threading.Event(), threading.Event()

    def step() -> None:
        begun.set()
        assert goes_on.wait(10)

    lm.before = step
    thread = threading.Thread(target=session.generate, args=(PROMPT,), kwargs={"max_new_tokens": 2})

    async def main() -> None:
        thread.start()
        assert await asyncio.to_thread(begun.wait, 10)
        stream = session.generate_async(PROMPT, max_new_tokens=5)
        task = asyncio.ensure_future(stream)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (stream.result.ids, stream.result.finish_reason) == ((), "cancelled")

    asyncio.run(main())
    goes_on.set()
    thread.join(10)
    assert session.generate(PROMPT, max_new_tokens=1).ids
    assert len(lm.calls) == 3, "what was cancelled was never run"


def test_each_coroutine_has_its_own_result(session: Session, tokenizer: Tokenizer) -> None:
    prompts = [f"prompt {index}" for index in range(5)]

    async def whole(prompt: str) -> Result:
        return await session.generate_async(prompt, max_new_tokens=15)

    async def streamed(prompt: str) -> Result:
        stream = session.generate_async(prompt, max_new_tokens=15)
        text = "".join([piece async for piece in stream])
        assert text == stream.result.text
        return stream.result

    async def main() -> list[Result]:
        return await asyncio.gather(*(ask(prompt) for prompt in prompts for ask in (whole, streamed)))

    results = asyncio.run(main())
    assert [result.text for result in results] == [expected(tokenizer, 15, prompt) for prompt in prompts for _ in "12"]
    assert {(result.finish_reason, result.trace.new_tokens) for result in results} == {("length", 15)}


def test_a_cancelled_stream_has_a_result(session: Session, lm: HistoryLm, tokenizer: Tokenizer) -> None:
    """In the middle of a step, which is not waited for: its token is not in the result."""
    begun, goes_on = threading.Event(), threading.Event()

    def step() -> None:
        if len(lm.calls) == 4:
            begun.set()
            assert goes_on.wait(10)

    lm.before = step

    async def main() -> Result:
        stream = session.generate_async(PROMPT, max_new_tokens=50)
        task = asyncio.ensure_future(stream)
        assert await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        result = stream.result
        goes_on.set()
        await session.generate_async(PROMPT, max_new_tokens=1)
        assert stream.result is result
        return result

    result = asyncio.run(main())
    assert (result.finish_reason, list(result.ids)) == ("cancelled", greedy(tokenizer.encode(PROMPT), 4, SPEC))
    assert result.trace.new_tokens == 4


def test_an_async_stream_that_is_left_holds_nobody(session: Session, tokenizer: Tokenizer) -> None:
    async def main() -> None:
        async with session.generate_async(PROMPT, max_new_tokens=30) as left:
            first = await anext(left)
            assert (await session.generate_async("other", max_new_tokens=9)).text == expected(tokenizer, 9, "other")
            assert first + "".join([piece async for piece in left]) == expected(tokenizer, 30)
        left = session.generate_async(PROMPT, max_new_tokens=30)
        await anext(left)
        await left.aclose()
        assert left.result.finish_reason == "cancelled"
        assert [piece async for piece in left] == []

    asyncio.run(main())


def test_a_loop_that_ended_with_an_open_stream_holds_nobody(session: Session, tokenizer: Tokenizer) -> None:
    loop = asyncio.new_event_loop()
    stream = session.generate_async(PROMPT, max_new_tokens=90)
    loop.run_until_complete(anext(stream))
    loop.close()
    assert session.generate(PROMPT, max_new_tokens=5).text == expected(tokenizer, 5)
    stream._close()
    assert expected(tokenizer, 90).startswith(stream.result.text)


def test_a_batch_for_a_coroutine(session: Session, tokenizer: Tokenizer) -> None:
    async def main() -> tuple[list[Result], list[Result]]:
        nothing: list[str] = []
        return await session.generate_async(["a", "b c"], max_new_tokens=9), await session.generate_async(nothing)

    results, none = asyncio.run(main())
    assert [result.text for result in results] == [expected(tokenizer, 9, prompt) for prompt in ("a", "b c")]
    assert none == []


def test_a_chat_for_a_coroutine(session: Session) -> None:
    messages = [{"role": "user", "content": "hi"}]

    async def main() -> tuple[str, Result]:
        pieces = [piece async for piece in session.chat_async(messages, max_new_tokens=9)]
        return "".join(pieces), await session.chat_async(messages, max_new_tokens=9)

    text, result = asyncio.run(main())
    assert text == result.text == session.chat(messages, max_new_tokens=9).text


def test_errors_reach_the_coroutine(session: Session, lm: HistoryLm) -> None:
    def fail() -> None:
        raise EngineError("engine: out of luck")

    lm.before = fail

    async def bad() -> None:
        with pytest.raises(EngineError, match=r"^engine: out of luck$"):
            await collect(session, PROMPT, 5)
        with pytest.raises(RequestError, match=r"^max_new_tokens: 0"):
            session.generate_async(PROMPT, max_new_tokens=0)
        session.close()
        with pytest.raises(RequestError, match=r"^session: closed$"):
            await collect(session, PROMPT, 5)

    asyncio.run(bad())


def test_a_deadline_may_pass_before_a_coroutine_has_its_turn(session: Session, clock: Clock) -> None:
    async def main() -> list[Result]:
        late, other = session.generate_async(PROMPT, deadline=5), session.generate_async(PROMPT, max_new_tokens=3)
        clock.now += 6
        return list(await asyncio.wait_for(asyncio.gather(late, other), 10))

    late, other = asyncio.run(main())
    assert (late.ids, late.finish_reason) == ((), "deadline")
    assert other.finish_reason == "length"


def test_a_stream_that_another_coroutine_closes(session: Session, lm: HistoryLm) -> None:
    """The one that waits for it learns of it."""
    begun, goes_on = threading.Event(), threading.Event()

    def step() -> None:
        begun.set()
        assert goes_on.wait(10)

    lm.before = step

    async def main() -> Result:
        stream = session.generate_async(PROMPT)
        task = asyncio.ensure_future(stream)
        assert await asyncio.to_thread(begun.wait, 10)
        await stream.aclose()
        goes_on.set()
        return await asyncio.wait_for(task, 10)

    assert asyncio.run(main()).finish_reason == "cancelled"
    assert len(lm.calls) == 1
