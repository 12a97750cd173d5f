"""A server of a script: it answers with known delays, and as wrongly as it is told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from adaptc.bench.load.target import LoadTarget


@dataclass
class Script:
    """What the server does.

    Attributes:
        first: Seconds until the first token.
        gap: Seconds between tokens.
        tokens: Tokens of an answer.
        per_chunk: Tokens in a chunk.
        usage: Whether it counts tokens.
        faults: Faults of the requests in the order of their coming; later ones have none.
        fault: A fault of every request.
        slots: Requests that are answered at a time; others wait.
        trace: adaptc's account of a request.
        asked: Bodies, in the order of their coming.
        heads: Headers, the same.
        written: For each request, when it came and when each chunk was written, of `perf_counter`.
    """

    first: float = 0.05
    gap: float = 0.01
    tokens: int = 8
    per_chunk: int = 1
    usage: bool = True
    faults: list[str] = field(default_factory=list)
    fault: str = ""
    slots: int = 1000
    trace: dict[str, Any] | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    written: list[list[float]] = field(default_factory=list)


def target(url: str, **fields: Any) -> LoadTarget:
    return LoadTarget(**{"name": "scripted", "url": url, "model": "m", **fields})


@contextmanager
def running(script: Script) -> Iterator[str]:
    """The server in a thread; its address."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(_listen(script))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        asyncio.run_coroutine_threadsafe(_end(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _listen(script: Script) -> asyncio.Server:
    slots = asyncio.Semaphore(script.slots)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lengths = [
                    line.split(":")[1] for line in head.lower().splitlines() if line.startswith("content-length")
                ]
                body = await reader.readexactly(int(lengths[0]) if lengths else 0)
                if not await _respond(script, slots, head, body, writer):
                    break
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0)


async def _end(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _respond(
    script: Script, slots: asyncio.Semaphore, head: str, body: bytes, writer: asyncio.StreamWriter
) -> bool:
    """Answer one request; whether the connection stays."""
    if head.startswith("GET"):
        writer.write(plain(*listing(script)))
        return True
    script.asked.append(json.loads(body))
    script.heads.append(head)
    came = [perf_counter()]
    script.written.append(came)
    fault = script.faults.pop(0) if script.faults else script.fault
    if fault == "drops":  # as a server that closed the connection while the request was on its way
        writer.transport.abort()
        return False
    if fault in PLAIN:
        writer.write(plain(*PLAIN[fault]))
        return True
    async with slots:
        return await _stream(script, fault, came, writer)


async def _stream(script: Script, fault: str, times: list[float], writer: asyncio.StreamWriter) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    writer.write(chunk({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}))
    due = perf_counter() + script.first
    for place in range(0, script.tokens, script.per_chunk):
        await asyncio.sleep(max(0.0, due - perf_counter()))
        if place and fault == "dies":
            writer.transport.abort()
            return False
        if place and fault == "hangs":
            await asyncio.sleep(60)
        if place and fault in EVENTS:
            writer.write(framed(EVENTS[fault]) + framed(b""))
            return True
        text = "".join(f" word{place + each}" for each in range(min(script.per_chunk, script.tokens - place)))
        times.append(perf_counter())  # before: afterwards its reader may have been quicker
        writer.write(chunk({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}))
        due += script.gap * script.per_chunk
    if fault == "ends early":
        writer.write(framed(b""))
        return True
    last: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
    writer.write(chunk(last if script.trace is None else {**last, "adaptc": script.trace}))
    if script.usage:
        counts = {
            "prompt_tokens": 12,
            "completion_tokens": script.tokens,
            "prompt_tokens_details": {"cached_tokens": 4},
        }
        writer.write(chunk({"choices": [], "usage": counts}))
    writer.write(framed(b"data: [DONE]\n\n") + framed(b""))
    await writer.drain()
    return True


def listing(script: Script) -> tuple[int, str, bytes]:
    """What it says of its models."""
    if script.fault == "nonsense":
        return 200, "text/html", b"<html>hello</html>"
    if script.fault == "no key":
        return PLAIN["no key"]
    return 200, "application/json", b'{"object": "list", "data": [{"id": "listed", "owned_by": "test"}]}'


def chunk(event: dict[str, Any]) -> bytes:
    return framed(b"data: " + json.dumps(event).encode() + b"\n\n")


def framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def plain(status: int, kind: str, body: bytes) -> bytes:
    location = "Location: https://elsewhere.example/v1\r\n" if status == 307 else ""
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{location}\r\n"
    return head.encode() + body


PLAIN = {
    "busy": (429, "application/json", b'{"error": {"message": "too many requests; come later"}}'),
    "no key": (401, "application/json", b'{"error": {"message": "a key is needed"}}'),
    "redirects": (307, "text/plain", b""),
    "nonsense": (200, "text/html", b"<html>hello</html>"),
    "whole": (200, "application/json", b'{"choices": [{"message": {"content": "hello"}}]}'),
}
EVENTS = {
    "error event": b'data: {"error": {"message": "out of memory"}}\n\n',
    "named error": b'event: error\ndata: {"message": "lost"}\n\n',
    "no JSON": b"data: {oops\n\n",
    "no event": b"data: [1, 2]\n\n",
}
