"""What every request passes: its id, who may ask, errors in one shape, its line in the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adaptc.runtime.errors import AdaptcError
from adaptc.runtime.server.endpoints.parts import ServerParts
from adaptc.runtime.server.observing.logs import request_id, say, trace_id
from adaptc.runtime.server.observing.spans import span
from adaptc.runtime.server.protocol.errors import ApiError, api_error, unavailable
from adaptc.runtime.server.protocol.json_text import DONE, event
from adaptc.runtime.server.protocol.responses import DisconnectedError, error_response
from adaptc.runtime.server.serving.settings import LOOPBACK
from adaptc.runtime.server.ui.files import PATHS

OPEN = frozenset({"/health", "/ready"}) | PATHS
"""Paths that need no key: probes have none, and a page is there before it can ask for one."""

_QUIET = frozenset({"/health", "/ready", "/metrics", "/ui/state"})  # asked all the time

_LAST_SECONDS = 1.0
_GONE = 499  # nginx's status for a client that went away; only the log and metrics see it


class Front:
    """An ASGI application around the endpoints."""

    def __init__(self, app: ASGIApp, parts: ServerParts, names: Mapping[Any, str]) -> None:
        """Wrap.

        Args:
            app: The endpoints.
            parts: The parts of the server.
            names: What logs and metrics call each endpoint: the pattern of its path, not what a client wrote.
        """
        self._app = app
        self._parts = parts
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        id_, began = request_id(headers.get("x-request-id")), perf_counter()
        facts: dict[str, object] = {}
        scope.update({"app": self, "adaptc.facts": facts, "adaptc.parts": self._parts, "adaptc.id": id_})
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", id_.encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        try:
            with span(scope["method"], headers) as told:
                try:
                    async with AsyncExitStack() as stack:
                        scope["adaptc.stack"] = stack
                        self._check(scope["path"], headers)
                        await self._app(scope, receive, sending)
                except BaseException as error:
                    answer = _answer(error, facts, id_)
                    if answer is None:
                        status = _GONE
                    elif status == 0:
                        await error_response(answer)(scope, receive, sending)
                    else:
                        await _end_events(answer, sending)
                    if isinstance(error, asyncio.CancelledError) and not self._parts.entrance.draining:
                        raise
                told.update_name(f"{scope['method']} {self._endpoint(scope)}")
                for name, value in {"http.response.status_code": status, **facts}.items():
                    told.set_attribute(name, value)
        finally:
            self._record(scope, facts, status, perf_counter() - began, id_, headers)

    def _check(self, path: str, headers: dict[str, str]) -> None:
        """Refuse who may not ask.

        Raises:
            ApiError: it is called by a name that is not its own, or the key is missing or wrong.
        """
        settings = self._parts.settings
        host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
        known = {*settings.allowed_hosts, settings.host, *(LOOPBACK if settings.loopback else ())}
        if settings.loopback and "*" not in known and host.strip("[]").lower() not in known:
            # A page in a browser may call this machine by a name of its own, whose address it has changed.
            raise ApiError(403, "host: not a name of this server; localhost is right, or serve with --allowed-host")
        if path in OPEN or not settings.keys:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")
        if not settings.lets_in(given):
            what = "no API key" if given is None else "an API key that is not known"
            raise ApiError(
                401,
                f"authorization: {what}; 'Authorization: Bearer KEY' is needed",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _endpoint(self, scope: Scope) -> str:
        return self._names.get(scope.get("endpoint"), "other")

    def _record(
        self,
        scope: Scope,
        facts: dict[str, object],
        status: int,
        seconds: float,
        id_: str,
        headers: dict[str, str],
    ) -> None:
        endpoint = self._endpoint(scope)
        self._parts.metrics.http.add(1, endpoint, str(status))
        say(
            "request",
            logging.DEBUG if endpoint in _QUIET else logging.INFO,
            id=id_,
            trace=trace_id(headers.get("traceparent")),
            method=scope["method"],
            endpoint=endpoint,
            status=status,
            ms=round(seconds * 1e3, 1),
            **facts,
        )


async def _end_events(answer: ApiError, send: Send) -> None:
    """End a stream of events with an error, if its client still reads."""
    message = {"type": "http.response.body", "body": event(answer.body()) + DONE, "more_body": False}
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(send(message), _LAST_SECONDS)


def _answer(error: BaseException, facts: dict[str, object], id_: str) -> ApiError | None:
    """The answer to what an endpoint raised; None if nobody is there to read it."""
    if isinstance(error, ApiError):
        if error.status >= 500:
            facts["error"] = error.message
        return error
    if isinstance(error, DisconnectedError):
        return None
    if isinstance(error, AdaptcError):
        facts["error"] = str(error)
        return api_error(error)
    if isinstance(error, asyncio.CancelledError):
        return unavailable("server: it ended before this request did; ask another one, or later")
    if isinstance(error, HTTPException):
        what = "no such path; /openapi.json names all" if error.status_code == 404 else error.detail
        return ApiError(error.status_code, f"server: {what}", headers=dict(error.headers or {}))
    if not isinstance(error, Exception):
        raise error
    facts["error"] = type(error).__name__
    logging.getLogger("adaptc.server").error("bug", extra={"fields": {"id": id_}}, exc_info=error)
    return ApiError(500, "server: a bug of adaptc; its log has the traceback, under this request's id", code="bug")
