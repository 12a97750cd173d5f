"""adaptc's own server under a load: what the load generator sees is what the server tells."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from adaptc.cli import main
from tests.server.test_process import serving

pytest.importorskip("aiohttp", reason="pip install 'adaptc[bench]'")


def wait_for(url: str) -> None:
    """Wait until a server answers: it tells of its address a moment before."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"{url}/health")
            return


def test_a_load_of_chats_is_answered_and_counted(bundle: Path) -> None:
    with serving(f"tiny={bundle}", "--max-batch", "4") as (_, url):
        wait_for(url)
        load = (
            "--dataset",
            "chat:turns=2,system=0,in=1-2,out=3-6",
            "--requests",
            "12",
            "--rate",
            "30",
            "--max-lag",
            "2",
        )
        arguments = ["bench", "--serve", f"tiny={url}", *load, "--exact-lengths", "--warmup", "0", "--json"]
        done = CliRunner().invoke(main, arguments)
        metrics = httpx.get(f"{url}/metrics").text
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    found = report["results"]["tiny"]
    assert (found["requests"], found["completed"], found["errors"]) == (12, 12, {})
    assert found["tokens_counted_by_server"]
    assert found["adaptc"]["words"]["finish_reason"] == {"length": 12}
    assert found["adaptc"]["means"]["time_to_first_token_ms"][0] / 1e3 < found["ttft_seconds"]["mean"] + 0.01
    lines = report["exchanges"]["tiny"]
    for kind in ("prompt", "generation"):
        [counted] = [line for line in metrics.splitlines() if line.startswith(f"adaptc:{kind}_tokens_total{{")]
        key = "prompt_tokens" if kind == "prompt" else "tokens"
        assert float(counted.rpartition(" ")[2]) == sum(line[key] for line in lines)


def test_a_full_queue_is_counted_as_429(bundle: Path) -> None:
    with serving(f"tiny={bundle}", "--max-batch", "1", "--max-queue", "1") as (_, url):
        wait_for(url)
        load = ("--dataset", "random:in=1,out=40", "--requests", "24", "--rate", "2000", "--arrivals", "bursts:24")
        done = CliRunner().invoke(
            main,
            ["bench", "--serve", f"tiny={url}", *load, "--exact-lengths", "--warmup", "0", "--max-lag", "5", "--json"],
        )
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["results"]["tiny"]
    assert found["completed"] + found["errors"]["status 429"]["count"] == 24
    assert found["errors"].keys() == {"status 429"}
    assert 0 < found["completed"] < 24
