"""`adaptc serve` as a process, with a socket, signals and OpenAI's own client."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from adaptc import runtime

openai = pytest.importorskip("openai")


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and its address; killed at the end if it still runs."""
    command = [sys.executable, "-m", "adaptc", "serve", *arguments, "--port", "0", "--log-json", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield process, address(process)
    finally:
        process.kill()
        process.wait(10)
        assert process.stderr is not None
        process.stderr.close()


def address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        told: dict[str, Any] = json.loads(line)
        if told["event"] == "listening":
            return str(told["url"])
    raise AssertionError("it ended before it listened")


def test_openai_s_client_talks_with_it(bundle: Path) -> None:
    with runtime.load(bundle, threads=1) as session:
        solo = session.chat([{"role": "user", "content": "the cat"}], max_tokens=10)
    with serving(f"tiny={bundle}") as (_, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert [each.id for each in client.models.list()] == ["tiny", "tiny@dense"]
        asked: dict[str, Any] = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "the cat"}],
            "temperature": 0,
        }
        whole = client.chat.completions.create(**asked, max_completion_tokens=10)
        assert whole.choices[0].message.content == solo.text
        assert whole.usage.completion_tokens == len(solo.ids)
        stream = client.chat.completions.create(
            **asked, max_tokens=10, stream=True, stream_options={"include_usage": True}
        )
        parts = list(stream)
        assert "".join(each.choices[0].delta.content or "" for each in parts if each.choices) == solo.text
        assert parts[-1].usage.completion_tokens == len(solo.ids)
        assert parts[-1].usage.prompt_tokens_details.cached_tokens > 0  # it was asked before
        with pytest.raises(openai.NotFoundError, match="no model 'other'; there are: tiny"):
            client.chat.completions.create(**{**asked, "model": "other"})
        with pytest.raises(openai.BadRequestError, match="temperature: 200; a number from 0 to 100 is needed"):
            client.chat.completions.create(**{**asked, "temperature": 200})
        with client.chat.completions.create(**asked, max_tokens=90, stream=True) as left:
            next(iter(left))
        assert client.completions.create(model="tiny", prompt="x", max_tokens=1).usage.completion_tokens == 1


def refusal(url: str) -> httpx.Response:
    """The first answer that is none of 200, within a second."""
    until = time.monotonic() + 1
    while (answer := httpx.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 1})).status_code == 200:
        assert time.monotonic() < until
    return answer


def test_a_signal_ends_it_after_what_it_began(bundle: Path) -> None:
    with (
        serving(f"tiny={bundle}", "--drain-seconds", "20", "--max-batch", "1") as (process, url),
        httpx.Client(base_url=url) as client,
    ):
        # One after another, so that they take longer than a client needs to come.
        body = {"prompt": ["the cat"] * 100, "max_tokens": 80, "temperature": 0, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            refused = refusal(url)  # a connection of its own: the server still listens
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert process.wait(15) == 0


def test_a_killed_server_is_back_soon(bundle: Path) -> None:
    with serving(f"tiny={bundle}") as (process, url):
        port = url.rpartition(":")[2]
        process.kill()
        process.wait(10)
    began = time.monotonic()
    command = [sys.executable, "-m", "adaptc", "serve", str(bundle), "--port", port, "--log-json", "--threads", "1"]
    again = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert address(again) == url
        assert httpx.get(f"{url}/ready").status_code == 200
        assert time.monotonic() - began < 10
    finally:
        again.kill()
        again.wait(10)
        assert again.stderr is not None
        again.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-bundle"], "no-bundle"),
        (["BUNDLE", "--host", "0.0.0.0"], "0.0.0.0 lets other machines ask; --api-key-file is needed"),
        (["BUNDLE", "--api-key-file", "no-file"], "no-file: cannot be read: No such file or directory"),
        (["BUNDLE", "--host", "192.0.2.1", "--allow-anonymous"], "192.0.2.1:0: "),
        (["BUNDLE", "--target-ttft", "1"], "--target-ttft, --target-tpot: no bundle has gates or a router"),
        (["BUNDLE", "--min-budget", "0.5"], "min_budget: 0.5; without a target no budget is lowered"),
        (["a=BUNDLE", "a=BUNDLE"], "two bundles are called 'a'; NAME=BUNDLE names one"),
    ],
)
def test_a_server_that_cannot_be_says_why(bundle: Path, arguments: list[str], said: str) -> None:
    given = [each.replace("BUNDLE", str(bundle)) for each in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "adaptc", "serve", *given, "--port", "0"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert said in last
