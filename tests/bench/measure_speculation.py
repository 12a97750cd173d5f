"""adaptc's speculation beside llama.cpp's: python -m tests.bench.measure_speculation BUNDLE --gguf FILE

BUNDLE is compiled from FILE. Every prompt is answered by all, one after the other: by adaptc in each way that its
session has, and by servers of llama.cpp, one for each way, from the same token ids, greedily, with as many threads.
Times are the engines' own, of the tokens after the first. tests/bench/llama_speculation_server.py has the ways of
llama.cpp; "draft" is among them with --draft-gguf. Some of them remember answers (ngram-mod, ngram-cache), and would
draft in a second turn what they wrote in the first: more prompts are better than more turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.table import Table

from adaptc.bench.load.target import base_url
from adaptc.bench.speculation.comparison import SpeculationSettings, opened, prompts_of
from adaptc.bench.speculation.figures import ALL, differences, figures_by_kind, ratio_of
from adaptc.bench.speculation.turns import TimedAnswer, Write, WrittenTokens, answer_in_turns
from adaptc.cli.measuring.speculation import print_disturbance, print_kinds, spread_text
from adaptc.cli.output import print_table
from adaptc.machine.description import Machine
from adaptc.runtime import open_bundle
from tests.bench.measure_servers import answering, process

OURS, THEIRS = "adaptc", "llama.cpp"
WAYS = ("off", "ngram-simple", "ngram-simple:3:8", "ngram-mod", "ngram-map-k4v", "ngram-cache")
TOKENS = 2048  # that a slot of llama.cpp holds


@contextmanager
def llama_cpp(way: str, options: argparse.Namespace) -> Iterator[Write]:
    """What writes by llama.cpp in one way."""
    told: dict[str, Any] = {"path": str(options.gguf), "threads": options.threads, "tokens": TOKENS, "way": way}
    if options.draft_gguf is not None:
        told["draft"] = str(options.draft_gguf)
    with process("tests.bench.llama_speculation_server", json.dumps(told)) as started:
        assert started.stdout is not None
        address = started.stdout.readline().strip()
        if not address:
            raise SystemExit(f"{way}: llama.cpp's server ended with exit code {started.wait()}")
        with httpx.Client(base_url=answering(base_url(address)), timeout=1800) as client:
            yield writing(client, started.pid)


def writing(client: httpx.Client, pid: int) -> Write:
    """What asks a server, which is this process."""
    fixed = {"temperature": 0, "cache_prompt": False, "return_tokens": True}

    def write(prompt: Sequence[int], new_tokens: int) -> WrittenTokens:
        before = cpu_seconds(pid)
        answer = client.post("/completion", json={"prompt": list(prompt), "n_predict": new_tokens, **fixed})
        return written(answer.raise_for_status().json(), cpu_seconds(pid) - before)

    return write


def cpu_seconds(pid: int) -> float:
    """What a process has used; 0 where Linux does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def written(answer: Mapping[str, Any], elsewhere: float = 0.0) -> WrittenTokens:
    """What a server says it wrote, in so many CPU seconds; `predicted_ms` begins with the first token."""
    times = answer["timings"]
    drafted, accepted = (times.get(key, 0) for key in ("draft_n", "draft_n_accepted"))
    return WrittenTokens(tuple(answer["tokens"]), times["predicted_ms"] / 1e3, drafted, accepted, elsewhere=elsewhere)


def report_of(answers: Sequence[TimedAnswer]) -> dict[str, Any]:
    """The figures of both engines, and adaptc's "auto" over each way of llama.cpp, by kind."""
    engines = {}
    for engine in (OURS, THEIRS):
        own = [
            dataclasses.replace(each, way=each.way.removeprefix(f"{engine} "))
            for each in answers
            if each.way.startswith(f"{engine} ")
        ]
        engines[engine] = {
            "kinds": figures_by_kind(own, ways_of(own), "off"),
            "differences": [dataclasses.asdict(each) for each in differences(own, "off")],
        }
    kinds = list(dict.fromkeys(each.kind for each in answers))
    return {**engines, "auto_over": {kind: auto_over(answers, kind) for kind in (*kinds, ALL)}}


def ways_of(answers: Sequence[TimedAnswer]) -> list[str]:
    """The ways in the order that they were given in, which is that of the first prompt."""
    return list(dict.fromkeys(each.way for each in answers))


def auto_over(answers: Sequence[TimedAnswer], kind: str) -> dict[str, Any]:
    """How many times as fast adaptc's "auto" is as each way of llama.cpp, prompt by prompt."""
    asked = [each for each in answers if kind in (each.kind, ALL)]
    theirs = [way for way in ways_of(answers) if way.startswith(THEIRS)]
    return {way.removeprefix(f"{THEIRS} "): ratio_of(asked, f"{OURS} auto", way) for way in theirs}


def print_report(report: Mapping[str, Any], where: str) -> None:
    """The figures as tables."""
    for engine in (OURS, THEIRS):
        print_kinds(report[engine]["kinds"], (engine, "× off"), where)
        print_disturbance(report[engine]["kinds"])
    ways = list(report["auto_over"][ALL])
    table = Table(title=f"{OURS} auto over {THEIRS}", title_justify="left", caption=where)
    table.add_column("kind", no_wrap=True)
    for way in ways:
        table.add_column(way, justify="right", no_wrap=True)
    for kind, found in report["auto_over"].items():
        table.add_row(kind, *(spread_text(found[way], 2) for way in ways))
    print_table(table, width=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--draft-gguf", type=Path, help="a smaller model of the same vocabulary, for llama.cpp")
    parser.add_argument("--ways", nargs="+", default=WAYS, help="of llama.cpp; off is the first in any case")
    parser.add_argument("--kinds", nargs="+", default=[], help="as adaptc bench --speculate; by default all")
    parser.add_argument("--prompts", type=Path, help="a JSONL file, as adaptc bench --prompts")
    parser.add_argument("--samples", type=int, help="prompts of each kind")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="a file for the figures and every answer, as JSON")
    options = parser.parse_args()
    settings = SpeculationSettings(options.threads, options.new_tokens, options.samples, options.turns, options.seed)
    bundle = open_bundle(options.bundle)
    prompts = prompts_of(bundle, options.kinds, options.prompts, settings)
    theirs = dict.fromkeys(["off", *options.ways, *(["draft"] if options.draft_gguf else [])])
    with ExitStack() as stack:
        found = stack.enter_context(opened(bundle, settings))
        ways = {f"{OURS} {name}": write for name, write in found.ways.items()}
        for way in theirs:
            ways[f"{THEIRS} {way}"] = stack.enter_context(llama_cpp(way, options))
        answers = answer_in_turns(ways, prompts, options.new_tokens, options.turns, Lines())
    report = report_of(answers)
    if options.output is not None:
        every = {"answers": [dataclasses.asdict(each) for each in answers], "costs": dict(found.costs)}
        options.output.write_text(json.dumps(report | every) + "\n", encoding="utf-8")
    print_report(report, f"{Machine.here().cpu}, {options.threads} threads; {len(prompts)} prompts")
    if report[OURS]["differences"]:
        raise SystemExit(f"{OURS}: {len(report[OURS]['differences'])} answers differ from those without speculation")


class Lines:
    """A line now and then."""

    def expect(self, stages: int) -> None:
        pass

    def stage(self, name: str) -> None:
        print(name, flush=True)

    def step(self, done: int, total: int, note: str = "") -> None:
        if done % 20 == 0:
            print(f"{done} of {total} {note}", flush=True)


if __name__ == "__main__":
    main()
