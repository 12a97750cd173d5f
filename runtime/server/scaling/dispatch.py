"""The entrance to replicas: who may ask, which pool answers, and another try when a replica is lost.

Nothing of an answer is sent before its first bytes of content are there, so until then a lost replica costs its
client time only: the request is asked again, of another replica. After that it cannot be: what was sent cannot be
taken back, and another replica may write another text. Such a stream ends with an error.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from adaptc.runtime.pools import pool_for, route_of
from adaptc.runtime.server.endpoints.parts import note, parts_of, stack_of
from adaptc.runtime.server.observing.prometheus import CONTENT_TYPE
from adaptc.runtime.server.protocol.errors import ApiError, unavailable
from adaptc.runtime.server.protocol.responses import EventStream, read_body, unless_gone
from adaptc.runtime.server.scaling.calls import ReplicaCall, passed_on
from adaptc.runtime.server.scaling.pools import FullError, LostError, Pool
from adaptc.runtime.server.scaling.prefixes import prefix_keys

_TRIES = 4
_PAUSE = 0.1  # seconds before the second try; twice as long before each further one
_READY_SECONDS = 2.0
_READS_PROMPTS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/route"})


@dataclass(slots=True, eq=False)
class Dispatcher:
    """Hands requests to pools.

    Attributes:
        pools: By name.
        routes: The routes that each has; none for all.
        counts: Requests by pool and outcome: `answered`, `retried` each time one was asked again, `lost` after it had
            sent content, `failed` when every try was lost, `full` when no replica took it.
    """

    pools: Mapping[str, Pool]
    routes: Mapping[str, Sequence[str]]
    counts: dict[tuple[str, str], int] = field(default_factory=dict)

    async def forward(self, request: Request) -> Response:
        """Have a replica answer a request."""
        settings = parts_of(request).settings
        body: Mapping[str, Any] = {}
        if request.method == "POST":
            body = await read_body(request, settings.max_body, settings.read_seconds)
        pool = pool_for(self.routes, body)
        call = _call_of(request, body)
        answer = await unless_gone(request, self._begun(pool, call, settings.max_seconds))
        note(request, pool=pool, tries=answer.tries)
        stack_of(request).push_async_callback(answer.messages.aclose)
        if answer.streams:
            return EventStream(self._events(answer), settings.write_seconds)
        self._count(pool, "answered")
        return Response(answer.first, answer.status, answer.headers)

    async def ready(self, _: Request) -> Response:
        """Whether a replica of each pool takes requests."""
        for name in self.pools:
            try:
                answer = await asyncio.wait_for(self._once(name, ReplicaCall("GET", "/ready")), _READY_SECONDS)
                await answer.messages.aclose()
            except (LostError, FullError, asyncio.TimeoutError):
                raise unavailable(f"server: no replica of pool {name} takes requests") from None
            if answer.status != 200:
                raise unavailable(f"server: no replica of pool {name} takes requests")
        return Response(b'{"status":"ready"}', media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        """What the entrance counted, and each replica, whose lines have its name as a label."""
        texts = [parts_of(request).metrics.text()]
        for pool in self.pools.values():
            texts += [labelled(text, name) for name, text in (await pool.metrics()).items()]
        return Response(merged(texts), media_type=CONTENT_TYPE)

    async def _begun(self, pool: str, call: ReplicaCall, seconds: float) -> _Begun:
        """The answer, once its first content is there.

        Raises:
            ApiError: every replica that was asked was lost, none takes it, or none began in time.
        """
        ends, pause = monotonic() + seconds, _PAUSE
        for count in range(1, _TRIES + 1):
            try:
                answer = await asyncio.wait_for(self._once(pool, call), max(0.001, ends - monotonic()))
            except FullError:
                self._count(pool, "full")
                message = "server: too many requests wait; ask again later"
                raise ApiError(429, message, code="queue_full", headers={"Retry-After": "1"}) from None
            except asyncio.TimeoutError:
                self._count(pool, "failed")
                raise unavailable(f"server: no replica began to answer in {seconds:g} s; ask again later") from None
            except LostError:
                answer = None
            if answer is not None and (answer.status != 503 or count == _TRIES):
                answer.pool, answer.tries = pool, count
                return answer
            if answer is not None:  # it is about to end, and says so
                await answer.messages.aclose()
            if count < _TRIES:
                self._count(pool, "retried")
                await asyncio.sleep(pause)
                pause *= 2
        self._count(pool, "failed")
        raise unavailable(f"server: {_TRIES} replicas were lost with this request; ask again later")

    async def _once(self, pool: str, call: ReplicaCall) -> _Begun:
        messages = self.pools[pool].ask(call)
        try:
            start = await _start(messages)
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
            content = _content(messages)
            answer = _Begun(start["status"], headers, messages, content)
            answer.first = await anext(content, b"")
            if not answer.streams:
                answer.first += b"".join([each async for each in content])
        except BaseException:
            await messages.aclose()
            raise
        return answer

    async def _events(self, answer: _Begun) -> AsyncGenerator[bytes, None]:
        """A stream's content; the error of a lost one is appended by whoever sends it."""
        try:
            yield answer.first
            async for content in answer.content:
                yield content
        except LostError:
            self._count(answer.pool, "lost")
            raise ApiError(
                503, "server: the replica was lost after it had sent a part of this answer; ask again", code="lost"
            ) from None
        self._count(answer.pool, "answered")

    def _count(self, pool: str, outcome: str) -> None:
        self.counts[pool, outcome] = self.counts.get((pool, outcome), 0) + 1


@dataclass(slots=True, eq=False)
class _Begun:
    """An answer of which the first content is there, or all of it if it is no stream."""

    status: int
    headers: dict[str, str]
    messages: AsyncGenerator[Message, None]
    content: AsyncGenerator[bytes, None]
    first: bytes = b""
    pool: str = ""
    tries: int = 0

    def __post_init__(self) -> None:
        for name in ("content-length", "x-request-id", "x-content-type-options"):  # whoever sends it has its own
            self.headers.pop(name, None)

    @property
    def streams(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")


async def _start(messages: AsyncGenerator[Message, None]) -> Message:
    """The message that an answer begins with.

    Raises:
        LostError: there is none.
    """
    async for message in messages:
        return message
    raise LostError


async def _content(messages: AsyncGenerator[Message, None]) -> AsyncGenerator[bytes, None]:
    """The content of an answer's messages, to its end; empty ones are left out.

    Raises:
        LostError: the messages end before the answer does.
    """
    async for message in messages:
        if content := message.get("body", b""):
            yield content
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            return
    raise LostError


def _call_of(request: Request, body: Mapping[str, Any]) -> ReplicaCall:
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.scope["headers"]]
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))  # what a proxy puts before all
    salt = f"{str(body.get('model') or '').partition('@')[0]}\0{route_of(body) or ''}"
    keys = prefix_keys(body, salt) if path in _READS_PROMPTS else ()
    content = json.dumps(body, ensure_ascii=False).encode() if request.method == "POST" else b""
    own = [(name, value) for name, value in passed_on(headers) if name != "x-request-id"]
    return ReplicaCall(request.method, path, (*own, ("x-request-id", request.scope["adaptc.id"])), content, keys)


def labelled(text: str, replica: str) -> str:
    """Prometheus' text with the label `replica` on every sample."""
    lines = []
    for line in text.splitlines():
        name, brace, rest = line.partition("{")
        if line.startswith("#") or not line:
            lines.append(line)
        elif brace:
            lines.append(f'{name}{{replica="{replica}",{rest}')
        else:
            name, _, value = line.partition(" ")
            lines.append(f'{name}{{replica="{replica}"}} {value}')
    return "\n".join(lines)


def merged(texts: Iterable[str]) -> str:
    """Several texts as one: the lines of a metric stand together, below what is said of it once."""
    groups: dict[str, list[str]] = {}
    name = ""
    for text in texts:
        for line in text.splitlines():
            if line.startswith("#"):
                name = line.split(" ", 3)[2]
                if line in groups.setdefault(name, []):
                    continue
            if line:
                groups[name].append(line)
    return "".join(f"{line}\n" for lines in groups.values() for line in lines)
