"""`adaptc bench --serve` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result

from adaptc.bench.load.replay_file import read_replay
from tests.bench.load.scripted import Script, running
from tests.cli.running import run as run_adaptc

aiohttp = pytest.importorskip("aiohttp", reason="pip install 'adaptc[bench]'")

QUICK = ("--dataset", "random:in=4,out=8", "--requests", "6", "--rate", "60", "--max-lag", "2")


def run(*arguments: object) -> Result:
    return run_adaptc("bench", *map(str, arguments))


def test_a_server_is_measured(tmp_path: Path) -> None:
    script = Script(first=0.05, gap=0.01, trace={"budget": 0.5, "route": "small", "ffn_skipped": 0.25})
    with running(script) as url:
        out, plot = tmp_path / "run.json", tmp_path / "run.png"
        done = run("--serve", url, *QUICK, "--target", "ttft=5", "--target", "e2e=0.01", "-o", out, "--plot", plot)
    assert done.exit_code == 0, done.output
    name = url.removeprefix("http://")
    for line in (f"{name}: listed", "12.0 read, 4.00 of them known, 8.00 written", "small 6 ×", "0.25"):
        assert line in done.stdout
    assert f"wrote {out}\nwrote {plot}\n" in done.stderr
    assert plot.read_bytes().startswith(b"\x89PNG")
    report = json.loads(out.read_text())
    found = report["results"][name]
    assert found["ttft_seconds"]["p50"] >= 0.05
    assert found["good_share"] == 0.0
    assert found["adaptc"] == {
        "words": {"route": {"small": 6}},
        "means": {"budget": [0.5, 6], "ffn_skipped": [0.25, 6]},
    }
    lines = report["exchanges"][name]
    assert [line["caller"] for line in sorted(lines, key=lambda each: each["due"])] == list(range(6))
    assert all(len(line["chunk_times"]) == 8 and line["due"] <= line["sent"] <= line["ended"] for line in lines)
    assert report["versions"]["aiohttp"] == aiohttp.__version__
    assert script.asked[0]["model"] == "listed"
    assert len(script.asked) == 7  # one warms up


def test_two_servers_are_compared() -> None:
    fast, slow = Script(first=0.02, gap=0.004), Script(first=0.1, gap=0.02)
    with running(fast) as one, running(slow) as other:
        servers = ("--serve", f"fast={one}", "--serve", f"slow={other}")
        only = ("--model", "fast=f", "--model", "g", "--body", 'slow={"temperature": 0}')
        done = run(*servers, *only, "--dataset", "random:in=4,out=8", "--requests", 6, "--repeats", 2, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [each["completed"] for each in report["results"].values()] == [12, 12]
    least, middle, most = report["ratios"]["slow"]["output_tokens_per_second"]
    assert 1 < least <= middle <= most
    assert {body["model"] for body in fast.asked} == {"f"}
    assert {(body["model"], body["temperature"]) for body in slow.asked} == {("g", 0)}
    asked = [[body["messages"][0]["content"] for body in script.asked] for script in (fast, slow)]
    assert asked[0] == asked[1]
    assert len(set(asked[0])) == 13  # neither turn asks what was asked before


def test_tables_of_two_servers_name_both() -> None:
    with running(Script(first=0.0, gap=0.0)) as url:
        done = run("--serve", f"one={url}", "--serve", f"two={url}", *QUICK)
    assert done.exit_code == 0, done.output
    assert "ratios: one over" in done.stdout
    assert "\none: listed\n" in done.stdout
    assert "\ntwo: listed\n" in done.stdout


def test_errors_are_counted_and_shown() -> None:
    with running(Script(first=0.0, gap=0.0, faults=["", "busy", "dies"])) as url:
        done = run("--serve", f"a={url}", *QUICK)
    assert done.exit_code == 0, done.output
    assert "error: status 429" in done.stdout
    assert "1 ×, first: too many requests; come later" in done.stdout
    assert "error: connection lost" in done.stdout


def test_a_run_that_the_generator_spoilt_is_refused() -> None:
    with running(Script(first=0.0, gap=0.0)) as url:
        done = run("--serve", f"a={url}", *QUICK[:-2], "--max-lag", "0.000001")
    assert done.exit_code == 1
    assert "Error: a: not valid, the generator did not keep up: it sent requests up to " in done.stderr
    assert "first token (TTFT)" in done.stdout  # and yet shown


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("busy", "Error: a: {}/v1/chat/completions: status 429: too many requests; come later\n"),
        ("redirects", "status 307: it redirects to https://elsewhere.example/v1; --serve that\n"),
        ("nonsense", "/v1/models: no list of models: no content type: <html>hello</html>; --model names one"),
        ("no key", "/v1/models: status 401: a key is needed; --api-key-file is needed\n"),
        ("whole", 'not a stream: application/json: {{"choices": [{{"message"'),
    ],
)
def test_a_server_that_does_not_answer_is_one_line(fault: str, message: str) -> None:
    with running(Script(fault=fault)) as url:
        done = run("--serve", f"a={url}", *QUICK)
    assert (done.exit_code, done.stdout) == (1, "")
    assert message.format(url) in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_server_that_never_answers_is_no_result() -> None:
    with running(Script(fault="busy")) as url:
        done = run("--serve", f"a={url}", "--warmup", 0, *QUICK)
    assert done.exit_code == 1
    assert done.stderr.endswith("Error: a: no request was answered\n")
    assert "6 ×, first: too many requests; come later" in done.stdout


def test_an_unreachable_server_is_one_line() -> None:
    with running(Script()) as url:
        pass
    done = run("--serve", url, *QUICK)
    assert done.exit_code == 1
    assert "connection refused" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_key_is_sent_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("very-secret-key\nanother\n")
    script = Script(first=0.0, gap=0.0)
    with running(script) as url:
        done = run("--serve", f"a={url}", *QUICK, "--api-key-file", tmp_path / "key", "--json")
    assert all("Authorization: Bearer very-secret-key\r\n" in head for head in script.heads)
    assert "very-secret-key" not in done.output


def test_a_load_is_written_and_replayed(tmp_path: Path) -> None:
    path = tmp_path / "load.jsonl"
    done = run("--write-replay", path, "--rate", 20, "--duration", 1, "--dataset", "random:in=4,out=8", "--seed", 5)
    assert (done.exit_code, done.stderr) == (0, f"wrote {path}\n")
    callers = read_replay(path)
    script = Script(first=0.0, gap=0.0)
    with running(script) as url:
        done = run("--serve", f"a={url}", "--replay", path, "--speed", 4, "--max-lag", 2, "--warmup", 0, "--json")
    report = json.loads(done.stdout)
    lines = sorted(report["exchanges"]["a"], key=lambda each: each["due"])
    assert [line["due"] for line in lines] == pytest.approx([each.time / 4 for each in callers], abs=1e-5)
    prompts = {each.requests[0].messages[0]["content"] for each in callers}
    assert {body["messages"][0]["content"] for body in script.asked} == prompts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "a BUNDLE is needed, or --serve with a server's address; not both"),
        ("bundle --serve http://h", "a BUNDLE is needed, or --serve"),
        ("bundle --rate 3", "--rate is for --serve"),
        ("--serve http://h --threads 2", "--threads is for a BUNDLE"),
        ("--serve http://h --jobs 5", "--jobs is for a BUNDLE"),
        ("--serve http://h --rate 0", "'0'; requests a second above 0 are needed, or inf"),
        ("--serve http://h --rate fast", "'fast'; requests a second above 0"),
        ("--serve http://h --arrivals constant", "--arrivals: with --rate inf one comes when another has ended"),
        ("--serve http://h --speed 2", "--speed: is for --replay"),
        ("--serve http://h --replay x --rate 2", "--rate: a replay has its own; leave it out"),
        ("--serve http://h --target speed=3", "'speed=3'; NAME=SECONDS with one of ttft, tpot, e2e is needed"),
        ("--serve http://h --target ttft=soon", "'ttft=soon'; NAME=SECONDS"),
        ("--serve http://h --body [1]", "'[1]'; a JSON object is needed"),
        ("--serve http://h --body {", "not JSON: "),
        ("--serve http://h --serve http://h", "each server needs a name of its own: NAME=URL"),
        ("--write-replay x", "with --rate inf the server decides when requests come; --rate is needed"),
    ],
)
def test_wrong_usage_is_exit_2(arguments: str, message: str) -> None:
    done = run(*arguments.split())
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--serve h:8000", "Error: --serve: 'h:8000'; an address such as http://127.0.0.1:8000 is needed\n"),
        ("--serve http://h --dataset words", "Error: --dataset: 'words'; one of these is needed: random:"),
        ("--serve http://h --replay absent", "Error: absent: cannot be read: No such file or directory; "),
        ("--serve http://h --api-key-file absent", "Error: absent: cannot be read: No such file or directory; "),
    ],
)
def test_what_is_wrong_is_one_line(arguments: str, message: str) -> None:
    done = run(*arguments.split())
    assert done.exit_code == 1, done.output
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_the_help_tells_the_two_apart() -> None:
    own, load = run("--help").stdout.split("\nOptions with --serve, beside ")
    assert "--against" in own
    assert "--rate" not in own
    assert "--rate" in load
    assert "--against" not in load
