"""Clients that go away or do not read, servers that end, and limits of how many are let in."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from adaptc.runtime.server.app import application
from adaptc.runtime.server.endpoints.parts import ServerParts
from tests.models.history_lm import HistoryLm
from tests.server.served import SPEC, ask_async, by_hand, error_of, events, parts_of

COMPLETE = "/v1/completions"
STEP = 0.004
LONG = {"prompt": [3, 1, 4], "max_tokens": 90, "temperature": 0}


class Slow:
    """A server whose model takes its time."""

    def __init__(self, **settings: Any) -> None:
        self.lm = HistoryLm(SPEC, before=lambda: time.sleep(STEP))
        self.parts = parts_of(by_hand(lm=self.lm), **settings)

    async def stops(self) -> bool:
        """Whether nothing is computed any more."""
        await asyncio.sleep(5 * STEP)
        calls = len(self.lm.calls)
        await asyncio.sleep(10 * STEP)
        return len(self.lm.calls) == calls and self.parts.entrance.inside("hand") == 0


async def call(
    parts: ServerParts, body: dict[str, Any], gone: asyncio.Event, took: Callable[[int], Awaitable[None]]
) -> list[dict[str, Any]]:
    """One request by hand: its messages; `gone` is the client's end, `took` is awaited for each message it takes."""
    sent: list[dict[str, Any]] = []
    given = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if given:
            return given.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        await took(len(sent))

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": COMPLETE,
        "raw_path": COMPLETE.encode(),
        "query_string": b"",
        "headers": headers,
        "scheme": "http",
        "root_path": "",
        "client": None,
        "server": None,
    }
    await application(parts)(scope, receive, send)
    return sent


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_request(stream: bool) -> None:
    async def main() -> None:
        slow, gone = Slow(), asyncio.Event()

        async def took(count: int) -> None:
            if count == 4:
                gone.set()

        running = asyncio.ensure_future(call(slow.parts, {**LONG, "stream": stream}, gone, took))
        if not stream:
            await asyncio.sleep(20 * STEP)
            gone.set()
        sent = await running
        assert await slow.stops()
        assert len(slow.lm.calls) < 80
        assert stream == bool(sent)
        assert not any(message.get("more_body") is False for message in sent)
        again = await ask_async(slow.parts, COMPLETE, {**LONG, "max_tokens": 3})
        assert again.status_code == 200

    asyncio.run(main())


def test_a_client_that_does_not_read_is_left() -> None:
    async def main() -> None:
        slow, gone = Slow(write_seconds=0.2), asyncio.Event()

        async def took(count: int) -> None:
            if count == 3:
                await asyncio.Event().wait()

        began = time.monotonic()
        await call(slow.parts, {**LONG, "stream": True}, gone, took)
        assert time.monotonic() - began < 5
        assert await slow.stops()

    asyncio.run(main())


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def main() -> None:
        parts = parts_of(by_hand(), read_seconds=0.1)

        async def never() -> Any:
            yield b'{"prompt": '
            await asyncio.sleep(60)

        answer = await ask_async(
            parts, COMPLETE, method="POST", content=never(), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 408
        assert error_of(answer)["message"] == "body: not complete after 0.1 s; send it at once"

    asyncio.run(main())


def test_more_than_may_wait_are_told_when_to_come_again() -> None:
    async def main() -> None:
        slow = Slow(max_queue=1)
        answers = await asyncio.gather(*(ask_async(slow.parts, COMPLETE, {**LONG, "max_tokens": 9}) for _ in range(4)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert error_of(refused)["type"] == "rate_limit_error"
        assert error_of(refused)["code"] == "queue_full"
        assert len({answer.text.partition('"text"')[2][:40] for answer in answers if answer.status_code == 200}) == 1
        metrics = (await ask_async(slow.parts, "/metrics")).text
        assert 'adaptc:request_rejected_total{reason="queue"} 2' in metrics

    asyncio.run(main())


def test_a_server_that_ends_finishes_what_it_began() -> None:
    async def main() -> None:
        slow = Slow()
        stream = asyncio.ensure_future(ask_async(slow.parts, COMPLETE, {**LONG, "max_tokens": 40, "stream": True}))
        await asyncio.sleep(10 * STEP)
        draining = asyncio.ensure_future(slow.parts.entrance.drain(30))
        await asyncio.sleep(0)
        refused = await ask_async(slow.parts, COMPLETE, LONG)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert (await ask_async(slow.parts, "/ready")).status_code == 503
        assert (await ask_async(slow.parts, "/health")).status_code == 200
        assert await draining == 0
        told = events(await stream)
        assert told[-1]["choices"][0]["finish_reason"] == "length"

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_what_takes_longer_than_the_end_is_cut(stream: bool) -> None:
    async def main() -> None:
        slow = Slow()
        asked = asyncio.ensure_future(ask_async(slow.parts, COMPLETE, {**LONG, "stream": stream}))
        await asyncio.sleep(10 * STEP)
        assert await slow.parts.entrance.drain(0.01) == 1
        answer: httpx.Response = await asked
        if not stream:
            assert answer.status_code == 503
            assert error_of(answer)["message"].startswith("server: it ended before this request did")
        else:
            *told, last = events(answer)
            assert told[0]["choices"]
            assert last["error"]["message"].startswith("server: it ended before this request did")
        assert await slow.stops()

    asyncio.run(main())


def test_a_request_ends_at_the_server_s_limit_of_time() -> None:
    async def main() -> None:
        slow = Slow(max_seconds=10 * STEP)
        answer = (await ask_async(slow.parts, COMPLETE, LONG)).json()
        assert answer["adaptc"]["finish_reason"] == "deadline"
        assert 0 < answer["usage"]["completion_tokens"] < 30

    asyncio.run(main())


def test_a_request_may_not_ask_for_more_tokens_than_the_server_writes() -> None:
    async def main() -> None:
        parts = parts_of(by_hand(), max_tokens=5)
        answer = await ask_async(parts, COMPLETE, {**LONG, "max_tokens": 6})
        assert error_of(answer)["message"] == "max_tokens: 6; this server writes at most 5"
        without = {name: value for name, value in LONG.items() if name != "max_tokens"}
        assert (await ask_async(parts, COMPLETE, without)).json()["usage"]["completion_tokens"] == 5

    asyncio.run(main())
