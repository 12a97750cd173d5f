"""Runs against a server whose delays are known: what is measured is what it did."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import pytest

from adaptc.bench.load.arrivals import parse_arrivals
from adaptc.bench.load.callers import Caller, LoadRequest, user
from adaptc.bench.load.datasets import parse_dataset
from adaptc.bench.load.exchange import Exchange
from adaptc.bench.load.generator import LoadRun, RunLimits, run_load, warm_up
from adaptc.bench.load.load_comparison import LoadSettings, compare_under_load, load_report, with_model
from adaptc.bench.load.load_figures import load_figures
from adaptc.bench.load.reply import Reply
from adaptc.bench.load.schedule import Schedule
from adaptc.bench.load.target import LoadTarget, base_url
from adaptc.errors import EngineError, RequestError
from adaptc.runtime.progress import SILENT, Progress
from tests.bench.load.scripted import Script, running, target

pytest.importorskip("aiohttp", reason="pip install 'adaptc[bench]'")

ANY = RunLimits()


def schedule(
    dataset: str = "random:in=4,out=8", arrivals: str = "poisson", rate: float = 40.0, **more: Any
) -> Schedule:
    return Schedule(parse_dataset(dataset), parse_arrivals(arrivals), rate, **more)


def run(script: Script, load: Schedule, limits: RunLimits = ANY, turn: int = 0, **fields: Any) -> LoadRun:
    with running(script) as url:
        return run_load(target(url, **fields), load, turn, limits)


def test_latencies_are_those_of_the_server() -> None:
    script = Script(first=0.05, gap=0.01, tokens=8)
    measured = run(script, schedule(arrivals="constant", requests=24))
    figures = load_figures([measured], {}, 0.05)
    assert (figures["requests"], figures["completed"], figures["errors"]) == (24, 24, {})
    # The server sleeps as long as it says, or longer on a busy machine; what it did is what counts.
    did = {each.caller: times for each, times in zip(by_caller(measured), script.written, strict=True)}
    for each in measured.exchanges:
        came, *chunks = did[each.caller]
        assert each.ttft >= 0.05
        assert each.reply.times[0] - each.sent >= chunks[0] - came
        assert len(each.gaps) == 7
        assert each.tokens == 8
    late = [
        each.reply.times[0] - each.sent - (did[each.caller][1] - did[each.caller][0]) for each in measured.exchanges
    ]
    assert median(late) < 0.02
    spans = {each.caller: did[each.caller][-1] - did[each.caller][1] for each in measured.exchanges}
    assert median(abs(sum(each.gaps) - spans[each.caller]) for each in measured.exchanges) < 0.02
    assert figures["tpot_seconds"]["p50"] == pytest.approx(median(spans.values()) / 7, abs=0.004)
    assert figures["itl_seconds"]["p50"] == pytest.approx(median(spans.values()) / 7, abs=0.004)
    assert figures["mean_output_tokens"] == 8
    assert (figures["mean_input_tokens"], figures["mean_cached_tokens"]) == (12, 4)
    assert figures["tokens_counted_by_server"]


def by_caller(measured: LoadRun) -> list[Exchange]:
    return sorted(measured.exchanges, key=lambda each: each.caller)


def test_a_slow_server_delays_nobody_s_coming() -> None:
    """Open loop: one answer at a time, 0.15 s each, and twenty callers within a second."""
    script = Script(first=0.15, tokens=1, slots=1)
    measured = run(script, schedule(arrivals="constant", requests=20, rate=20.0))
    due = [each.due for each in by_caller(measured)]
    assert due == pytest.approx([place / 20 for place in range(20)])
    assert median(each.sent - each.due for each in measured.exchanges) < 0.02
    # The last one waits for all before it: that is in its latency, which a closed loop would never show.
    assert by_caller(measured)[-1].ttft > 1.9
    came = [times[0] - script.written[0][0] for times in script.written]
    assert came[-1] < 1.5


def test_the_same_load_comes_to_two_servers() -> None:
    load = schedule(dataset="chat:turns=2,system=5,in=3,out=4", requests=8)
    fast, slow = Script(first=0.0, gap=0.0), Script(first=0.1, gap=0.0)
    for script in (fast, slow):
        run(script, load)
    first = [{body["messages"][-1]["content"] for body in script.asked} for script in (fast, slow)]
    assert first[0] == first[1]
    assert len(first[0]) == 8


def test_a_closed_run_keeps_as_many_at_it_as_are_said() -> None:
    script = Script(first=0.05, tokens=1)
    measured = run(script, schedule(rate=math.inf, seconds=0.6), RunLimits(concurrency=3))
    changes = sorted(
        [(each.sent, 1) for each in measured.exchanges] + [(each.ended, -1) for each in measured.exchanges]
    )
    under_way = [sum(change for _, change in changes[: place + 1]) for place in range(len(changes))]
    assert max(under_way) == 3
    assert measured.seconds == 0.6
    assert 12 <= len(measured.exchanges) <= 39
    assert max(each.sent for each in measured.exchanges) < 0.62


def test_a_limit_of_requests_is_a_queue_that_latencies_include() -> None:
    script = Script(first=0.1, tokens=1)
    measured = run(script, schedule(arrivals="bursts:6", requests=6, rate=1000.0), RunLimits(concurrency=1))
    waits = sorted(each.sent - each.came for each in measured.exchanges)
    assert waits[0] < 0.05
    assert waits[-1] > 0.45
    assert max(each.ttft for each in measured.exchanges) > 0.55
    figures = load_figures([measured], {}, 0.05)
    assert figures["generator"]["waited_for_concurrency_seconds"] > 0.2
    assert max(each.came - each.due for each in measured.exchanges) < 0.05  # waiting is not the generator's lag


def test_conversations_send_what_was_answered() -> None:
    script = Script(first=0.0, gap=0.0, tokens=2)
    measured = run(script, schedule(dataset="chat:turns=3,system=4,in=2,out=2,pause=0.1", requests=3))
    roles = [[message["role"] for message in body["messages"]] for body in script.asked]
    assert roles[0] == ["system", "user"]
    assert roles[2] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert script.asked[2]["messages"][2]["content"] == " word0 word1"
    assert script.asked[2]["messages"][:4] == [*script.asked[1]["messages"]]
    one, two, _ = by_caller(measured)
    assert two.due == pytest.approx(one.ended + 0.1)


def test_a_replay_sends_at_its_times() -> None:
    asked = [(0.0, "a"), (0.3, "b"), (0.3, "c")]
    callers = tuple(Caller((LoadRequest((user(text),), 2, time),)) for time, text in asked)
    script = Script(first=0.0, tokens=1)
    measured = run(script, schedule(replay=callers))
    assert script.asked[0]["messages"][0]["content"] == "a"
    assert [each.due for each in by_caller(measured)] == [0.0, 0.3, 0.3]
    assert script.written[1][0] - script.written[0][0] == pytest.approx(0.3, abs=0.1)


def test_requests_are_what_openai_s_api_takes() -> None:
    script = Script(first=0.0, gap=0.0)
    load = schedule(dataset="random:in=4,out=9", requests=1)
    with running(script) as url:
        run_load(target(url, key="secret", body={"temperature": 0}), load, 0, ANY)
        run_load(target(url, chat=False, exact=True, model="other"), load, 0, ANY)
    chat, completion = script.asked
    asked = chat["messages"][0]["content"]
    common = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 9}
    assert chat == {**common, "model": "m", "temperature": 0, "messages": [{"role": "user", "content": asked}]}
    assert completion == {**common, "model": "other", "min_tokens": 9, "prompt": asked}
    assert script.heads[0].startswith("POST /v1/chat/completions ")
    assert "Authorization: Bearer secret\r\n" in script.heads[0]
    assert script.heads[1].startswith("POST /v1/completions ")
    assert "Authorization" not in script.heads[1]
    assert "secret" not in repr(target(url, key="secret"))


def test_tokens_are_counted_by_the_server_or_by_chunks() -> None:
    script = Script(first=0.0, gap=0.02, tokens=12, per_chunk=4)
    counted = load_figures([run(script, schedule(requests=6))], {}, 0.05)
    assert (counted["mean_output_tokens"], counted["tokens_per_chunk"]) == (12, 4)
    assert counted["tpot_seconds"]["p50"] == pytest.approx(0.02, abs=0.004)
    assert counted["itl_seconds"]["p50"] == pytest.approx(0.08, abs=0.01)
    script = Script(first=0.0, gap=0.0, tokens=12, per_chunk=4, usage=False)
    uncounted = load_figures([run(script, schedule(requests=6))], {}, 0.05)
    assert (uncounted["mean_output_tokens"], uncounted["tokens_counted_by_server"]) == (3, False)
    assert uncounted["mean_input_tokens"] is None
    assert uncounted["input_tokens_per_second"] is None


def test_errors_are_counted_by_kind_and_hold_up_nobody() -> None:
    faults = ["busy", "", "dies", "no key", "redirects", "nonsense", "whole", "error event", "named error", "no JSON"]
    faults += ["no event", "ends early", "hangs", "busy"]
    script = Script(first=0.02, gap=0.01, faults=faults)
    figures = load_figures(
        [run(script, schedule(requests=20, rate=100.0), RunLimits(timeout=1.0))], {"ttft": 5.0}, 0.05
    )
    assert (figures["requests"], figures["completed"]) == (20, 7)
    counts = {kind: error["count"] for kind, error in figures["errors"].items()}
    assert counts == {
        "status 429": 2,
        "connection lost": 1,
        "status 401": 1,
        "status 307": 1,
        "not a stream": 2,
        "error event": 2,
        "malformed event": 2,
        "no end": 1,
        "timeout": 1,
    }
    assert figures["errors"]["status 429"]["first"] == "too many requests; come later"
    assert figures["errors"]["status 307"]["first"] == "it redirects to https://elsewhere.example/v1; --serve that"
    assert figures["good_share"] == 7 / 20


def test_a_server_that_is_gone_is_an_error_of_each_request() -> None:
    with running(Script()) as url:
        pass
    measured = run_load(target(url), schedule(requests=5), 0, ANY)
    assert [each.reply.error for each in measured.exchanges] == ["connection refused"] * 5
    with pytest.raises(EngineError, match=r"scripted: .*/v1/chat/completions: connection refused: "):
        warm_up(target(url), schedule(), 1, ANY)
    with pytest.raises(EngineError, match=r"/v1/models: connection refused: .*; is the server running\?"):
        with_model(target(url, model=None), 5.0)


def test_a_request_that_met_a_closed_connection_is_sent_once_more() -> None:
    load = schedule(rate=math.inf, requests=3)
    script = Script(first=0.0, gap=0.0, faults=["", "drops"])
    assert [each.reply.error for each in run(script, load).exchanges] == [None] * 3
    assert len(script.asked) == 4
    assert script.asked[1] == script.asked[2]
    script = Script(first=0.0, gap=0.0, faults=["drops", "drops"])
    assert [each.reply.error for each in run(script, load).exchanges] == ["connection lost", None, None]


def test_what_only_some_answers_tell_is_counted_with_their_number() -> None:
    traces: list[dict[str, Any]] = [{"lowered_to": None, "route": "a"}, {"lowered_to": 0.25}, {"lowered_to": 0.75}, {}]
    exchanges = tuple(made(0.0, (0.1,), 1, trace=trace) for trace in traces)
    found = load_figures([LoadRun(exchanges, 1.0, (0.0,), 0.1, 1.0)], {}, 0.05)
    assert found["adaptc"] == {"words": {"route": {"a": 1}}, "means": {"lowered_to": (0.5, 2)}}


def test_a_model_is_looked_up_where_none_is_named() -> None:
    with running(Script()) as url:
        assert with_model(target(url, model=None), 5.0).model == "listed"
        assert with_model(target(url), 5.0).model == "m"
    with (
        running(Script(fault="nonsense")) as url,
        pytest.raises(EngineError, match=r"no list of models: .*--model names"),
    ):
        with_model(target(url, model=None), 5.0)
    with (
        running(Script(fault="no key")) as url,
        pytest.raises(EngineError, match=r"status 401: a key .*--api-key-file"),
    ):
        with_model(target(url, model=None), 5.0)


def made(due: float, times: Sequence[float], tokens: int, came: float | None = None, **reply: Any) -> Exchange:
    at = due if came is None else came
    return Exchange(
        0, 0, due, at, at, times[-1] if times else due + 1, Reply(times=tuple(times), tokens=tokens, **reply)
    )


def test_figures_of_a_run_that_is_computed_by_hand() -> None:
    exchanges = (
        made(0.0, (0.1, 0.2, 0.3), 3, prompt_tokens=10),
        made(0.5, (1.5, 2.5), 4, prompt_tokens=20),  # half of its tokens come after the run
        made(1.0, (), 0, error="status 429", detail="busy"),
    )
    run = LoadRun(exchanges, seconds=2.0, stalls=(0.001,) * 99 + (0.5,), cpu=0.01, wall=4.0)
    figures = load_figures([run], {"ttft": 0.5}, 0.05)
    assert figures["ttft_seconds"]["mean"] == pytest.approx(0.55)
    assert figures["ttft_seconds"]["p90"] == pytest.approx(0.1 + 0.9 * 0.9)
    assert figures["tpot_seconds"]["mean"] == pytest.approx((0.1 + 0.5) / 2)
    assert figures["itl_seconds"]["mean"] == pytest.approx((0.1 + 0.1 + 1.0) / 3)
    assert figures["e2e_seconds"]["p50"] == pytest.approx((0.3 + 2.0) / 2)
    assert figures["requests_per_second"] == 0.5
    assert figures["output_tokens_per_second"] == (3 + 2) / 2
    assert figures["input_tokens_per_second"] == 15
    assert figures["goodput_requests_per_second"] == 0.5
    assert figures["good_share"] == 1 / 3
    assert figures["generator"]["cpu_seconds_per_chunk"] == 0.01 / 5
    assert figures["generator"]["kept_up"]
    twice = load_figures([run, run], {}, 0.05)
    assert twice["output_tokens_per_second"] == figures["output_tokens_per_second"]
    assert twice["output_tokens_per_second_of_each_run"] == [2.5, 2.5]


@pytest.mark.parametrize(
    ("late", "stalls", "cpu", "why"),
    [
        (0.2, (0.0,), 0.1, "it sent requests up to 200 ms late (99 %)"),
        (0.0, (0.2,) * 50, 0.1, "its clock was late by 200 ms (99 %)"),
        (0.0, (0.0,), 3.9, "it kept a core busy 98% of the time"),
    ],
)
def test_a_generator_that_does_not_keep_up_says_so(
    late: float, stalls: tuple[float, ...], cpu: float, why: str
) -> None:
    run = LoadRun((made(0.0, (0.1,), 1, came=late),), 1.0, stalls, cpu, 4.0)
    found = load_figures([run], {}, 0.05)["generator"]
    assert (found["kept_up"], found["why_not"]) == (False, [why])


def test_a_generator_is_late_where_its_process_is_held_up() -> None:
    """A negative control: what holds up the event loop is seen."""

    class Blocking:
        def expect(self, stages: int) -> None: ...
        def stage(self, name: str) -> None: ...
        def step(self, done: int, total: int, note: str = "") -> None:
            time.sleep(0.3)

    load = schedule(arrivals="constant", requests=30, rate=30.0)
    with running(Script(first=0.0, gap=0.0)) as url:
        held = load_figures([run_load(target(url), load, 0, ANY, Blocking())], {}, 0.05)["generator"]
        free = load_figures([run_load(target(url), load, 0, ANY)], {}, 0.05)["generator"]
    assert not held["kept_up"]
    assert held["lag_max_seconds"] > 0.2 > free["lag_p99_seconds"]


def test_servers_take_turns_and_ratios_are_of_the_first() -> None:
    order: list[tuple[str, int]] = []

    def run(to: LoadTarget, load: Schedule, turn: int, limits: RunLimits, progress: Progress) -> LoadRun:
        order.append((to.name, turn))
        speed = {"a": (3.0, 5.0), "b": (1.0, 1.0)}[to.name][turn]
        return LoadRun((made(0.0, (speed / 10, 0.6), int(6 * speed)),), 1.0, (0.0,), 0.1, 1.0)

    targets = [LoadTarget("a", "http://a", model="m"), LoadTarget("b", "http://b", model="m", key="secret")]
    load, settings = schedule(requests=1), LoadSettings(turns=2, warmup=0)
    runs = compare_under_load(targets, load, settings, SILENT, run)
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    report = load_report(targets, load, settings, runs)
    assert report["ratios"] == {
        "b": {
            "output_tokens_per_second": pytest.approx([3.0, 4.0, 5.0]),
            "ttft_p95_seconds": pytest.approx([3.0, 4.0, 5.0]),
        }
    }
    assert [len(lines) for lines in report["exchanges"].values()] == [2, 2]
    assert "secret" not in str(report)


@pytest.mark.parametrize(
    "text",
    ["http://h:8000", "http://h:8000/", "http://h:8000/v1", "http://h:8000/v1/", "http://h:8000/v1/chat/completions"],
)
def test_an_address_is_one_however_much_of_it_is_given(text: str) -> None:
    assert base_url(text) == "http://h:8000"


@pytest.mark.parametrize("text", ["h:8000", "", "ftp://h", "http://", "http://h:port", "http://h?key=1"])
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"--serve: .*; an address such as http://127.0.0.1:8000 is needed"):
        base_url(text)
