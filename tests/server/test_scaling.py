"""Replicas behind one entrance, without Ray: pools of real applications in this process, some of which get lost."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message

from adaptc.runtime.errors import RequestError
from adaptc.runtime.pools import check_pools, pool_for
from adaptc.runtime.server.app import application
from adaptc.runtime.server.endpoints.parts import ServerParts
from adaptc.runtime.server.scaling.calls import ReplicaCall, answers
from adaptc.runtime.server.scaling.dispatch import Dispatcher, labelled, merged
from adaptc.runtime.server.scaling.entry import entrance_application
from adaptc.runtime.server.scaling.pools import FullError, LostError
from adaptc.runtime.server.scaling.prefixes import BLOCK, PrefixTable, prefix_keys
from adaptc.runtime.server.scaling.scaling_options import ScalingOptions
from adaptc.runtime.server.serving.settings import Settings, hash_of
from tests.models.history_lm import HistoryLm
from tests.server.served import SPEC, by_hand, error_of, parts_of

COMPLETE = "/v1/completions"
BODY = {"prompt": [3, 1, 4], "max_tokens": 6, "temperature": 0}
ANYWHERE: dict[str, Any] = {"host": "0.0.0.0"}


class InProcess:
    """A pool of one application, whose answers are cut: `cuts` has how many messages each one gives, None all."""

    def __init__(self, parts: ServerParts, *cuts: int | None, full: bool = False) -> None:
        self.calls: list[ReplicaCall] = []
        self.closed = 0
        self._app = application(parts)
        self._cuts = list(cuts)
        self._full = full

    async def ask(self, call: ReplicaCall) -> AsyncGenerator[Message, None]:
        self.calls.append(call)
        if self._full:
            raise FullError
        cut = self._cuts.pop(0) if self._cuts else None
        messages = answers(self._app, call)
        count = 0
        try:
            async for together in messages:
                for message in together:
                    if count == cut:
                        raise LostError
                    count += 1
                    yield message
        finally:
            self.closed += 1
            await messages.aclose()

    async def metrics(self) -> Mapping[str, str]:
        return {"one": 'a_total 1\n# TYPE b counter\nb{c="d"} 2\n'}


def entrance(*cuts: int | None, full: bool = False, **settings: Any) -> tuple[Dispatcher, InProcess, Any]:
    pool = InProcess(parts_of(by_hand(), **ANYWHERE), *cuts, full=full)
    dispatcher = Dispatcher({"replicas": pool}, {"replicas": ()})
    return dispatcher, pool, entrance_application(Settings(**ANYWHERE, **settings), dispatcher)


def ask(app: Any, path: str, body: Any = None, **options: Any) -> httpx.Response:
    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://entrance") as client:
            return await client.request("GET" if body is None else "POST", path, json=body, **options)

    return asyncio.run(main())


def whole(stream: bool = False) -> Any:
    """What one server answers by itself."""
    return comparable(ask(application(parts_of(by_hand(), **ANYWHERE)), COMPLETE, {**BODY, "stream": stream}), stream)


def comparable(answer: httpx.Response, stream: bool = False) -> Any:
    assert answer.status_code == 200, answer.text
    if not stream:
        return answer.json()["choices"]
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(each.removeprefix("data: "))["choices"] for each in events[:-2]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cut", [0, 1])
def test_a_replica_lost_before_it_sent_tokens_costs_time_only(stream: bool, cut: int) -> None:
    dispatcher, pool, app = entrance(cut, cut)
    answer = ask(app, COMPLETE, {**BODY, "stream": stream})
    assert comparable(answer, stream) == whole(stream)
    assert dispatcher.counts == {("replicas", "retried"): 2, ("replicas", "answered"): 1}
    assert len(pool.calls) == pool.closed == 3
    assert answer.headers.get_list("x-request-id") == [dict(pool.calls[0].headers)["x-request-id"]]


def test_a_stream_lost_after_it_sent_tokens_ends_with_an_error_and_is_not_begun_again() -> None:
    dispatcher, pool, app = entrance(3)
    answer = ask(app, COMPLETE, {**BODY, "stream": True})
    *sent, last, done, nothing = answer.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    assert [json.loads(each.removeprefix("data: "))["choices"] for each in sent] == whole(True)[:2]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["code"] == "lost"
    assert error["message"] == "server: the replica was lost after it had sent a part of this answer; ask again"
    assert dispatcher.counts == {("replicas", "lost"): 1}
    assert len(pool.calls) == 1


def test_tries_end() -> None:
    dispatcher, pool, app = entrance(0, 0, 0, 0)
    answer = ask(app, COMPLETE, BODY)
    assert answer.status_code == 503
    assert error_of(answer)["message"] == "server: 4 replicas were lost with this request; ask again later"
    assert len(pool.calls) == 4
    assert dispatcher.counts["replicas", "failed"] == 1


def test_full_replicas_are_told_as_a_full_queue() -> None:
    _, _, app = entrance(full=True)
    answer = ask(app, COMPLETE, BODY)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert error_of(answer)["code"] == "queue_full"
    assert ask(app, "/ready").status_code == 503


def test_a_replica_that_drains_is_passed_over() -> None:
    parts = parts_of(by_hand(), **ANYWHERE)
    pool = InProcess(parts)
    app = entrance_application(Settings(**ANYWHERE), Dispatcher({"replicas": pool}, {"replicas": ()}))
    assert ask(app, "/ready").json() == {"status": "ready"}
    parts.entrance.draining = True
    assert ask(app, "/ready").status_code == 503
    assert ask(app, "/health").status_code == 200  # the entrance itself lives
    answer = ask(app, COMPLETE, BODY)
    assert answer.status_code == 503
    assert error_of(answer)["message"].startswith("server: it is ending")
    assert len(pool.calls) == 2 + 4


def test_a_replica_that_does_not_begin_is_not_waited_for() -> None:
    class Silent(InProcess):
        async def ask(self, call: ReplicaCall) -> AsyncGenerator[Message, None]:
            await asyncio.sleep(60)
            yield {}

    pool = Silent(parts_of(by_hand(), **ANYWHERE))
    app = entrance_application(Settings(**ANYWHERE, max_seconds=0.2), Dispatcher({"r": pool}, {"r": ()}))
    began = time.monotonic()
    answer = ask(app, COMPLETE, BODY)
    assert time.monotonic() - began < 5
    assert answer.status_code == 503
    assert error_of(answer)["message"] == "server: no replica began to answer in 0.2 s; ask again later"


def test_errors_of_a_replica_are_answers() -> None:
    dispatcher, pool, app = entrance()
    answer = ask(app, COMPLETE, {**BODY, "temperature": 200})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "temperature")
    assert ask(app, "/v1/models/hand").json()["id"] == "hand"
    assert ask(app, "/v1/jobs/a").status_code == 501
    assert ask(app, "/nothing").status_code == 404
    assert ask(app, "/ui").status_code == 404  # the page shows one server
    assert not [path for path in ask(app, "/openapi.json").json()["paths"] if path.startswith("/ui")]
    assert [call.method for call in pool.calls] == ["POST", "GET"]
    assert dispatcher.counts == {("replicas", "answered"): 2}


def test_keys_are_asked_for_at_the_entrance_and_go_no_further() -> None:
    _, pool, app = entrance(keys=frozenset({hash_of("a key of ours, secret")}))
    assert ask(app, COMPLETE, BODY).status_code == 401
    assert not pool.calls
    for header in ({"Authorization": "Bearer a key of ours, secret"}, {"X-API-Key": "a key of ours, secret"}):
        assert ask(app, COMPLETE, BODY, headers={**header, "Cookie": "a=b"}).status_code == 200
    assert all("secret" not in str(call) and "cookie" not in str(call) for call in pool.calls)


def test_a_body_is_limited_before_it_is_passed_on() -> None:
    _, pool, app = entrance(max_body=1024)
    answer = ask(app, COMPLETE, {"prompt": "x" * 2000})
    assert answer.status_code == 413
    assert not pool.calls


def test_a_client_that_goes_away_ends_its_request_in_the_replica() -> None:
    async def main() -> None:
        lm = HistoryLm(SPEC, before=lambda: time.sleep(0.004))
        parts = parts_of(by_hand(lm=lm), **ANYWHERE)
        messages = answers(
            application(parts), ReplicaCall("POST", COMPLETE, (("content-type", "application/json"),), long)
        )
        first = [await anext(messages), await anext(messages)]
        assert first[0][0]["type"] == "http.response.start"
        await messages.aclose()
        assert parts.entrance.inside("hand") == 0
        calls = len(lm.calls)
        await asyncio.sleep(0.05)
        assert len(lm.calls) <= calls + 1 < 80

    long = json.dumps({"prompt": [3, 1, 4], "max_tokens": 90, "temperature": 0, "stream": True}).encode()
    asyncio.run(main())


def test_metrics_are_those_of_the_entrance_and_of_each_replica() -> None:
    _, _, app = entrance()
    ask(app, COMPLETE, BODY)
    text = ask(app, "/metrics").text
    assert 'adaptc:replica_requests_total{pool="replicas",outcome="answered"} 1\n' in text
    assert 'b{replica="one",c="d"} 2\n' in text
    assert 'a_total{replica="one"} 1\n' in text
    assert 'endpoint="/v1/completions"' in text
    assert merged(["# HELP a x\n# TYPE a counter\na 1\n", "# HELP a x\n# TYPE a counter\na 2\n"]) == (
        "# HELP a x\n# TYPE a counter\na 1\na 2\n"
    )
    assert labelled("a 1", "r") == 'a{replica="r"} 1'


def test_prompts_that_begin_alike_have_keys_that_begin_alike() -> None:
    system = {"role": "system", "content": "Be brief. " * 40}
    one = prefix_keys({"messages": [system, {"role": "user", "content": "What is a lighthouse, and why?"}]})
    other = prefix_keys({"messages": [system, {"role": "user", "content": "How tall is the tallest one?" * 9}]})
    shared = len(json.dumps(system)) // BLOCK
    assert one[:shared] == other[:shared]
    assert set(one[shared + 1 :]).isdisjoint(other)
    text = "the cat sat on the mat " * 20
    assert prefix_keys({"prompt": text})[:3] == prefix_keys({"prompt": [text[: 3 * BLOCK] + "else"]})[:3]
    assert len(prefix_keys({"prompt": "short"})) == 1
    assert len(prefix_keys({"prompt": "x" * 10**6})) == 128
    assert prefix_keys({"prompt": list(range(100))}) == prefix_keys({"prompt": [list(range(100))]})
    assert not prefix_keys({})
    assert set(prefix_keys({"prompt": text}, "a")).isdisjoint(prefix_keys({"prompt": text}, "b"))
    assert prefix_keys({"prompt": "\ud800" * BLOCK})  # the replica refuses it


def test_a_prompt_goes_where_its_beginning_was_read() -> None:
    table = PrefixTable(slack=2)
    keys = [bytes([each]) for each in range(8)]
    idle = {"a": 0, "b": 0, "c": 0}
    table.note(keys[:4], "b")
    table.note(keys[:2], "c")
    assert table.ranked(keys, idle)[:2] == ["b", "c"]
    assert table.ranked(keys[:2], {"a": 0, "b": 1, "c": 0})[0] == "c"  # both know it: the idler one
    assert table.ranked(keys, {"a": 0, "b": 2, "c": 1})[0] == "b"
    assert table.ranked(keys, {"a": 0, "b": 3, "c": 0})[0] == "c"  # too much to do
    assert table.ranked(keys, {"a": 0, "c": 0}) == ["c", "a"]  # b was lost
    assert table.ranked([b"new"], {"a": 2, "b": 0, "c": 1}) == ["b", "c", "a"]
    assert {table.ranked([bytes([each])], idle)[0] for each in range(99, 130)} == {"a", "b", "c"}
    table.note(keys[:4], "b")
    assert (table.matched, table.asked) == (4, 10)


def test_a_table_of_prefixes_forgets_what_was_unused_for_longest() -> None:
    table = PrefixTable(entries=3)
    table.note([b"1", b"2"], "a")
    table.note([b"3"], "b")
    table.note([b"1"], "a")
    table.note([b"4"], "b")
    idle = {"a": 0, "b": 0}
    assert table.ranked([b"1"], idle)[0] == "a"
    assert PrefixTable().ranked([b"2"], idle) == table.ranked([b"2"], idle)


POOLS: dict[str, tuple[str, ...]] = {"quick": ("small", "short"), "all": (), "large": ("large",)}


@pytest.mark.parametrize(
    ("body", "pool"),
    [
        ({}, "all"),
        ({"model": "m@small"}, "quick"),
        ({"model": "m@large"}, "large"),
        ({"model": "m@fast"}, "all"),
        ({"model": "m@small", "adaptc": {"route": "large"}}, "large"),
        ({"model": 7, "adaptc": "nonsense"}, "all"),
        ({"adaptc": {"route": ["small"]}}, "all"),
    ],
)
def test_a_request_goes_to_the_pool_of_its_route(body: dict[str, Any], pool: str) -> None:
    assert pool_for(POOLS, body) == pool


def test_pools_leave_nobody_without_an_answer() -> None:
    with pytest.raises(RequestError, match=r"^pools: none has all routes; one without a list of routes"):
        check_pools({"a": ("small",)})
    with pytest.raises(RequestError, match=r"^pools: 'a b'; a name of letters"):
        check_pools({"a b": ()})


def test_options_are_those_that_a_server_has(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "keys").write_text("a key that is long enough\n")
    given = {"bundles": {"tiny": str(bundle)}, "pools": {"all": None, "two": ["a"]}, "api_key_file": "keys"}
    options = ScalingOptions.read({**given, "max_tokens": 9, "threads": 1}, tmp_path)
    assert options.pools == {"all": (), "two": ("a",)}
    assert options.settings(keys=True).lets_in("a key that is long enough")
    assert not options.settings().keys
    parts = options.replica("all")
    try:
        assert ask(application(parts), COMPLETE, {"prompt": "x", "max_tokens": 10}).status_code == 400
        assert list(parts.models.by_name) == ["tiny"]
    finally:
        parts.models.close()
    for wrong, said in (
        ({"max_tokens": 0}, "max_tokens: 0; "),
        ({"nonsense": 1}, "args: no option 'nonsense'; there are: allow_templates, api_key_file, bundles, "),
        ({"bundles": []}, r"args.bundles: \[\]; a mapping"),
        ({"bundles": {}}, "bundles: none; "),
    ):
        with pytest.raises(RequestError, match=f"^{said}"):
            ScalingOptions.read({**given, **wrong}, tmp_path)
