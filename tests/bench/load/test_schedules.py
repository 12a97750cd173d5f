"""Who comes, when, and what is asked: drawn from seeds, or read from files."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from adaptc.bench.load.arrivals import parse_arrivals
from adaptc.bench.load.callers import Caller
from adaptc.bench.load.datasets import parse_dataset
from adaptc.bench.load.lengths import parse_lengths
from adaptc.bench.load.replay_file import read_prompts, read_replay, write_replay
from adaptc.bench.load.schedule import Schedule
from adaptc.errors import RequestError


def gaps(kind: str, rate: float = 50.0, count: int = 20_000) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    times = parse_arrivals(kind).times(rate, np.random.default_rng(0))
    return np.diff([0.0, *islice(times, count)])


def schedule(dataset: str = "random", arrivals: str = "poisson", rate: float = 20.0, **options: object) -> Schedule:
    return Schedule(parse_dataset(dataset), parse_arrivals(arrivals), rate, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "variation"),
    [("poisson", 1.0), ("constant", 0.0), ("gamma:0.25", 2.0), ("gamma:4", 0.5), ("gamma:1", 1.0)],
)
def test_gaps_have_the_rate_and_the_variation_that_is_said(kind: str, variation: float) -> None:
    drawn = gaps(kind)
    assert drawn.mean() == pytest.approx(1 / 50, rel=0.05)
    assert drawn.std() / drawn.mean() == pytest.approx(variation, rel=0.06, abs=0.02)


def test_bursts_come_at_once() -> None:
    drawn = gaps("bursts:8")
    assert drawn.mean() == pytest.approx(1 / 50, rel=0.1)
    assert (drawn.reshape(-1, 8)[:, 1:] == 0).all()
    assert (drawn.reshape(-1, 8)[:, 0] > 0).all()


@pytest.mark.parametrize(
    "text", ["often", "gamma", "gamma:0", "gamma:-1", "gamma:nan", "bursts:0", "bursts:2.5", "poisson:2"]
)
def test_other_arrivals_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"--arrivals: .*; one of these is needed: poisson, constant, gamma:SHAPE"):
        parse_arrivals(text)


def test_a_schedule_is_a_function_of_its_seed_and_turn() -> None:
    one, again = (list(schedule(seconds=5.0, seed=3).callers(0)) for _ in range(2))
    assert one == again
    assert 60 < len(one) < 140
    assert all(0 < caller.time < 5 for caller in one)
    assert [caller.time for caller in one] == sorted(caller.time for caller in one)
    texts = [request.messages[0]["content"] for caller in one for request in caller.requests]
    assert len(set(texts)) == len(texts)
    for other in (schedule(seconds=5.0, seed=4).callers(0), schedule(seconds=5.0, seed=3).callers(1)):
        assert not {caller.time for caller in other} & {caller.time for caller in one}
    warm = schedule(seed=3).warmup(0).requests[0].messages[0]["content"]
    assert warm not in texts


def test_a_longer_schedule_begins_as_a_shorter_one() -> None:
    short, long = (list(schedule(seconds=seconds).callers(0)) for seconds in (2.0, 6.0))
    assert long[: len(short)] == short


def test_the_number_of_requests_ends_a_schedule() -> None:
    assert len(list(schedule(requests=7).callers(0))) == 7
    assert len(list(schedule("chat:turns=3", requests=7).callers(0))) == 3
    closed = schedule(rate=math.inf, requests=4)
    assert closed.closed
    assert [caller.time for caller in closed.callers(0)] == [0.0] * 4
    assert len(list(islice(schedule(rate=math.inf, seconds=1.0).callers(0), 500))) == 500  # only time ends it


def test_conversations_come_so_that_requests_have_the_rate() -> None:
    callers = list(schedule("chat:turns=4", "constant", 20.0, seconds=10.0).callers(0))
    assert sum(len(caller.requests) for caller in callers) == pytest.approx(200, abs=4)


def test_prompts_and_answers_have_the_lengths_that_are_said() -> None:
    requests = [parse_dataset("random:in=5-9,out=3").caller(place, (0,)).requests[0] for place in range(200)]
    lengths = [len(request.messages[0]["content"].split()) for request in requests]
    assert (min(lengths), max(lengths)) == (5, 9)
    assert {request.max_tokens for request in requests} == {3}


def test_a_log_normal_length_has_its_mean_and_deviation() -> None:
    random = np.random.default_rng(0)
    drawn = np.array([parse_lengths("x", "200~100").draw(random) for _ in range(20_000)])
    assert drawn.mean() == pytest.approx(200, rel=0.03)
    assert drawn.std() == pytest.approx(100, rel=0.06)
    assert drawn.min() >= 1


def test_a_conversation_shares_its_system_prompt_with_all_others() -> None:
    chat = parse_dataset("chat:turns=2,system=30,in=4,out=5-6,pause=1.5")
    one, other = chat.caller(0, (1,)), chat.caller(1, (2,))
    system, asked = one.requests[0].messages
    assert (system["role"], len(system["content"].split())) == ("system", 30)
    assert asked["role"] == "user"
    assert other.requests[0].messages[0] == system
    assert other.requests[0].messages[1] != asked
    assert [len(request.messages) for request in one.requests] == [2, 1]
    assert [request.pause for request in one.requests] == [0.0, 1.5]
    assert [len(parse_dataset("chat:system=0").caller(0, (0,)).requests[0].messages)] == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sharegpt", r"--dataset: 'sharegpt'; one of these is needed: random:in="),
        ("file:", r"--dataset: 'file:'; one of these"),
        ("random:input=3", r"--dataset: 'input=3'; there are: in=, out="),
        ("random:in=0", r"--dataset: in: '0'; N, LEAST-MOST"),
        ("random:in=9-3", r"--dataset: in: '9-3'; N, LEAST-MOST"),
        ("chat:turns=0", r"--dataset: turns: '0'; a number from 1 is needed"),
        ("chat:pause=soon", r"--dataset: pause: 'soon'; a number from 0 is needed"),
    ],
)
def test_other_datasets_are_refused(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_dataset(text)


def test_a_file_is_asked_in_its_order_and_again(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '"a"\n\n{"prompt": "b", "max_tokens": 3}\n{"messages": [{"role": "user", "content": "c"}], "id": 7}\n'
    )
    found = parse_dataset(f"file:{path}")
    asked = [found.caller(place, (0,)).requests[0] for place in range(4)]
    assert [each.messages[0]["content"] for each in asked] == ["a", "b", "c", "a"]
    assert [each.max_tokens for each in asked] == [None, 3, None, None]


@pytest.mark.parametrize("dataset", ["random", "chat:turns=3,pause=0.5"])
def test_what_is_written_is_what_is_replayed(dataset: str, tmp_path: Path) -> None:
    callers = list(schedule(dataset, "gamma:0.3", seconds=3.0).callers(0))
    write_replay(callers, tmp_path / "load.jsonl")
    again = read_replay(tmp_path / "load.jsonl")
    assert [each.requests[0].max_tokens for each in again] == [each.requests[0].max_tokens for each in callers]
    for one, other in zip(callers, again, strict=True):
        assert [request.messages for request in other.requests] == [request.messages for request in one.requests]
        assert [request.pause for request in other.requests] == [request.pause for request in one.requests]
        assert [r.time for r in other.requests] == pytest.approx([r.time for r in one.requests], abs=1e-6)
    fast = read_replay(tmp_path / "load.jsonl", speed=2.0)
    assert [each.time for each in fast] == pytest.approx([each.time / 2 for each in callers], abs=1e-6)
    replayed = schedule(seconds=1.0, replay=again)
    assert list(replayed.callers(5)) == [each for each in again if each.time < 1.0]
    assert not replayed.closed


def test_a_replay_takes_counts_and_conversations(tmp_path: Path) -> None:
    path = tmp_path / "load.jsonl"
    lines = [
        {"time": 2.0, "prompt": "second", "conversation": "x"},
        {"time": 1.0, "prompt_tokens": 40, "max_tokens": 8},
        {"time": 0.5, "prompt": "first", "conversation": "x", "pause": 0.25},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    talk, alone = read_replay(path)
    assert [(r.time, r.messages[0]["content"]) for r in talk.requests] == [(0.5, "first"), (2.0, "second")]
    assert talk.requests[0].pause == 0.25
    assert len(alone.requests[0].messages[0]["content"].split()) == 40
    assert isinstance(alone, Caller)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "empty; JSON lines with `prompt` or `messages` are needed"),
        ("{oops", r":1: not JSON: .*; an object on each line is needed"),
        ('{"time": 0}', ":1: one of `prompt`, `messages` and `prompt_tokens` is needed"),
        ('{"prompt": "a", "prompt_tokens": 3, "time": 0}', ":1: one of `prompt`"),
        ('{"prompt": "a"}', ":1: no `time`; seconds from the start of the run are needed"),
        ('{"prompt": "a", "time": -1}', ":1: time: -1; seconds from 0 to 1e"),
        ('{"prompt": "a", "time": 1764400000}', ":1: time: 1764400000; seconds from 0"),
        ('{"prompt": "a", "time": NaN}', ":1: time: nan; seconds"),
        ('{"prompt": "", "time": 0}', ":1: prompt: ''; a text is needed"),
        ('{"messages": [], "time": 0}', r":1: messages: \[\]; a list of objects"),
        ('{"messages": [{"role": "user"}], "time": 0}', ":1: messages: .*; a list of objects"),
        ('{"prompt": "a", "time": 0, "max_tokens": 0}', ":1: max_tokens: 0; a whole number from 1"),
        ('{"prompt": "a", "time": 0, "max_token": 5}', ":1: 'max_token' is not known; there are: time, prompt"),
    ],
)
def test_a_wrong_replay_is_a_sentence(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "load.jsonl"
    path.write_text(line)
    with pytest.raises(RequestError, match=message):
        read_replay(path)


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read: No such file or directory; a file of JSON lines is needed"):
        read_prompts(tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="cannot be read: it is not UTF-8"):
        read_prompts(tmp_path / "binary")
