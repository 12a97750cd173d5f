"""What bytes say, however they arrive."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptc.bench.load.exchange import Exchange
from adaptc.bench.load.reply import Received, Reply, read_reply

EVENTS: list[dict[str, Any]] = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"delta": {"content": "Zürich"}}]},
    {"choices": [{"delta": {"content": " ist"}, "finish_reason": None}]},
    {"choices": [{"delta": {}, "finish_reason": "stop"}], "adaptc": {"budget": 0.5}},
    {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}},
]


def stream(events: list[dict[str, Any]] = EVENTS, end: str = "\n\n", done: bool = True) -> bytes:
    data = [json.dumps(event, ensure_ascii=False) for event in events] + (["[DONE]"] if done else [])
    return "".join(f"data: {each}{end}" for each in data).encode()


def read(*pieces: bytes, **fields: Any) -> Reply:
    timed = tuple((float(place), piece) for place, piece in enumerate(pieces))
    return read_reply(Received(**{"status": 200, "kind": "text/event-stream", "pieces": timed, **fields}))


@given(st.lists(st.integers(0, len(stream())), max_size=6), st.sampled_from(["\n\n", "\r\n\r\n", "\n\n: ping\n\n"]))
def test_a_stream_says_the_same_however_it_is_torn(cuts: list[int], end: str) -> None:
    whole = stream(end=end)
    places = [0, *sorted(cuts), len(whole)]
    reply = read(*(whole[a:b] for a, b in pairwise(places)))
    assert (reply.error, reply.text, reply.finish_reason) == (None, "Zürich ist", "stop")
    assert (reply.prompt_tokens, reply.tokens, dict(reply.trace)) == (7, 3, {"budget": 0.5})
    assert len(reply.times) == 2


def test_a_token_has_the_time_of_the_piece_that_completes_it() -> None:
    role, first, second, *rest = (b"data: " + part for part in stream().split(b"data: ")[1:])
    reply = read(role, first[:10], first[10:], second, *rest)
    assert reply.times == (2.0, 3.0)


@pytest.mark.parametrize(
    ("delta", "text"),
    [
        ({"delta": {"content": "a"}}, "a"),
        ({"text": "a"}, "a"),
        ({"delta": {"reasoning_content": "b"}}, "b"),
        ({"delta": {"tool_calls": [{"index": 0}]}}, '[{"index": 0}]'),
    ],
)
def test_tokens_of_all_kinds_are_seen(delta: dict[str, Any], text: str) -> None:
    assert read(stream([{"choices": [delta]}])).text == text


def test_an_answer_without_text_has_the_time_of_its_end() -> None:
    reply = read(stream(EVENTS[:1]), stream(EVENTS[3:]))
    assert (reply.error, reply.text, reply.times) == (None, "", (1.0,))


@pytest.mark.parametrize(
    ("body", "fields", "error", "detail"),
    [
        (b'{"error": {"message": "slow\\ndown"}}', {"status": 429}, "status 429", "slow down"),
        (b'{"detail": "Not Found"}', {"status": 404}, "status 404", "Not Found"),
        (b'{"error": "plain"}', {"status": 500}, "status 500", "plain"),
        (b"\x00\xffgarbage", {"status": 502}, "status 502", "garbage"),
        (b"[" * 100_000, {"status": 502}, "status 502", "[[["),
        (b'{"choices": []}', {"kind": "application/json"}, "not a stream", "application/json"),
        (b"", {"kind": ""}, "not a stream", "no content type"),
        (b"", {}, "no end", "without a `finish_reason`"),
        (stream(EVENTS[:2], done=False), {}, "no end", "without a `finish_reason`"),
        (stream(EVENTS[:1]), {}, "no end", "without a `finish_reason`"),
        (b"data: {oops\n\n", {}, "malformed event", "not JSON: {oops"),
        (b"data: [1]\n\n", {}, "malformed event", "[1]"),
        (b'data: {"choices": [3]}\n\n', {}, "malformed event", '{"choices": [3]}'),
        (b'data: {"choices": {}}\n\n', {}, "malformed event", '{"choices": {}}'),
        (b"data: " + b"[" * 100_000 + b"\n\n", {}, "malformed event", "not JSON"),
        (stream([*EVENTS, {"error": {"message": "full"}}]), {}, "error event", "full"),
        (b'event: error\ndata: {"message": "lost"}\n\n', {}, "error event", "lost"),
        (stream(EVENTS[:2], done=False), {"failure": "connection lost", "detail": "reset"}, "connection lost", "reset"),
    ],
)
def test_what_is_wrong_is_an_error_of_a_kind(body: bytes, fields: dict[str, Any], error: str, detail: str) -> None:
    reply = read(body, **fields)
    assert reply.error == error
    assert detail in reply.detail
    assert "\n" not in reply.detail


def test_a_connection_that_breaks_after_the_end_is_no_error() -> None:
    assert read(stream(), failure="connection lost").error is None


@given(
    st.binary(max_size=300), st.sampled_from([200, 204, 404, None]), st.sampled_from(["text/event-stream", "text/html"])
)
def test_nothing_that_a_server_sends_raises(body: bytes, status: int | None, kind: str) -> None:
    assert read(body, status=status, kind=kind).error is not None


def exchange(times: tuple[float, ...], tokens: int | None = None, **fields: Any) -> Exchange:
    return Exchange(0, 0, 1.0, 1.25, 1.5, 9.0, Reply(times=times, tokens=tokens, **fields))


def test_times_count_from_when_a_request_was_due() -> None:
    one = exchange((2.0, 2.5, 3.5))
    assert (one.ttft, one.e2e, one.gaps, one.tpot, one.tokens) == (1.0, 2.5, (0.5, 1.0), 0.75, 3)


def test_several_tokens_in_a_chunk_are_shared_out() -> None:
    """Four tokens a chunk, a chunk each 0.4 s: 0.1 s a token, whatever came in the first."""
    assert exchange((1.0, 1.4, 1.8), tokens=12).tpot == pytest.approx(0.1)
    assert exchange((1.0,), tokens=12).tpot is None
    assert exchange((1.0, 2.0), tokens=1).tpot == 1.0  # a server that counts fewer than it sends


def test_a_good_answer_keeps_every_target() -> None:
    one = exchange((2.0, 2.5, 3.5))
    assert one.keeps({})
    assert one.keeps({"ttft": 1.0, "tpot": 0.75, "e2e": 2.5})
    assert not one.keeps({"ttft": 0.99, "tpot": 0.75})
    assert not one.keeps({"tpot": 0.74})
    assert not one.keeps({"e2e": 2.4})
    assert exchange((2.0,)).keeps({"tpot": 0.01})  # it has no further token
    assert not exchange((), error="timeout").keeps({})
