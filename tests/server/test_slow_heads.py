"""Clients that do not come to the point: a connection whose request's head is late is closed."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.models.history_lm import HistoryLm
from tests.server.chromium import listening
from tests.server.served import SPEC, by_hand, parts_of

LIMIT = 0.5
ASK = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
PATIENCE = 10


@contextmanager
def connection() -> Iterator[socket.socket]:
    """To a server with the limit."""
    with listening(parts_of(by_hand(), read_seconds=LIMIT)) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as found:
            yield found


def rest(found: socket.socket) -> tuple[bytes, float]:
    """All that comes until the server closes, and the seconds until then."""
    began, content = time.monotonic(), b""
    while part := found.recv(65536):
        content += part
    return content, time.monotonic() - began


def trickle(found: socket.socket) -> None:
    """Send a head that never ends, until the server closes."""
    end = time.monotonic() + PATIENCE
    found.sendall(ASK)
    try:
        while time.monotonic() < end:
            found.sendall(b"X-More: 1\r\n")
            time.sleep(LIMIT / 10)
    except OSError:
        return
    raise AssertionError("it waits for ever")


def test_a_head_that_never_ends_is_cut() -> None:
    with connection() as found:
        began = time.monotonic()
        trickle(found)
        assert LIMIT / 2 < time.monotonic() - began < PATIENCE


def test_half_a_head_is_answered() -> None:
    with connection() as found:
        found.sendall(ASK)
        content, seconds = rest(found)
        assert content.startswith(b"HTTP/1.1 408 ")
        assert LIMIT / 2 < seconds < PATIENCE


def test_a_connection_without_a_request_is_closed() -> None:
    with connection() as found:
        content, seconds = rest(found)
        assert content == b""
        assert LIMIT / 2 < seconds < PATIENCE


def test_the_second_head_of_a_connection_is_late_too() -> None:
    with connection() as found:
        found.sendall(ASK + b"\r\n")
        assert found.recv(65536).startswith(b"HTTP/1.1 200 ")
        time.sleep(1.5 * LIMIT)  # it may be silent between two requests
        found.sendall(ASK)
        content, _ = rest(found)
        assert b"HTTP/1.1 408 " in content


def test_an_answer_may_take_longer() -> None:
    lm = HistoryLm(SPEC, before=lambda: time.sleep(0.03))
    with listening(parts_of(by_hand(lm=lm), read_seconds=LIMIT)) as url, httpx.Client(base_url=url) as client:
        for stream in (True, False):
            body = {"prompt": [3, 1, 4], "max_tokens": 40, "temperature": 0, "stream": stream}
            began = time.monotonic()
            answer = client.post("/v1/completions", json=body, timeout=30)
            assert time.monotonic() - began > 2 * LIMIT
            assert answer.status_code == 200
            assert answer.text.endswith("[DONE]\n\n" if stream else "}")
