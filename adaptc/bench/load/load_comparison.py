"""Servers under the same load in turns, and their ratios."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from adaptc import __version__
from adaptc.bench.load.client import connected
from adaptc.bench.load.exchange import Exchange
from adaptc.bench.load.generator import LoadRun, RunLimits, run_load, warm_up
from adaptc.bench.load.load_figures import load_figures, written_per_second
from adaptc.bench.load.schedule import Schedule
from adaptc.bench.load.target import LoadTarget
from adaptc.machine.description import Machine
from adaptc.runtime.progress import SILENT, Progress


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How servers are measured.

    Attributes:
        limits: How far a run goes.
        turns: Runs of each server.
        warmup: Requests to each before the first, which do not count.
        targets: Most seconds that a good answer may take, by "ttft", "tpot" or "e2e".
        most_lag: Most seconds by which the generator may be late (99 of 100 times).
    """

    limits: RunLimits = dataclasses.field(default_factory=RunLimits)
    turns: int = 1
    warmup: int = 1
    targets: Mapping[str, float] = dataclasses.field(default_factory=dict)
    most_lag: float = 0.05


RunLoad = Callable[[LoadTarget, Schedule, int, RunLimits, Progress], LoadRun]
"""As `run_load` is."""


def with_model(target: LoadTarget, timeout: float) -> LoadTarget:
    """A server with a model: the first that it lists, if none is named.

    Raises:
        EngineError: it lists none.
    """
    if target.model is not None:
        return target

    async def first() -> str:
        async with connected(target, timeout) as client:
            return str((await client.models()).get("id"))

    return dataclasses.replace(target, model=asyncio.run(first()))


def compare_under_load(
    targets: Sequence[LoadTarget],
    schedule: Schedule,
    settings: LoadSettings,
    progress: Progress = SILENT,
    run: RunLoad = run_load,
) -> dict[str, list[LoadRun]]:
    """Put the same load on servers, in turns (A B A B ...).

    Args:
        targets: Servers with their models; at least one.
        schedule: Who comes; to all servers alike.
        settings: How to measure.
        progress: Told of every run.
        run: Runs one turn.

    Returns:
        By name, the runs of each.

    Raises:
        EngineError: a server does not answer before the first run.
    """
    for target in targets:
        warm_up(target, schedule, settings.warmup, settings.limits)
    runs: dict[str, list[LoadRun]] = {target.name: [] for target in targets}
    for turn in range(settings.turns):
        for target in targets:
            progress.stage(f"{target.name}, turn {turn + 1} of {settings.turns}" if settings.turns > 1 else target.name)
            runs[target.name].append(run(target, schedule, turn, settings.limits, progress))
    return runs


def load_report(
    targets: Sequence[LoadTarget], schedule: Schedule, settings: LoadSettings, runs: Mapping[str, Sequence[LoadRun]]
) -> dict[str, Any]:
    """All that was measured, as JSON has it."""
    results = {
        target.name: {"url": target.url, "model": target.model, "chat": target.chat, "body": dict(target.body)}
        | load_figures(runs[target.name], settings.targets, settings.most_lag)
        for target in targets
    }
    return {
        "results": results,
        "ratios": _ratios(runs),
        "settings": dataclasses.asdict(settings) | _described(schedule),
        "versions": {"adaptc": __version__, "aiohttp": importlib.metadata.version("aiohttp")},
        "machine": dataclasses.asdict(Machine.here()),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "exchanges": {
            name: [_exchange(each, turn) for turn, run in enumerate(of) for each in run.exchanges]
            for name, of in runs.items()
        },
    }


def _described(schedule: Schedule) -> dict[str, Any]:
    """How requests came."""
    return {
        "dataset": None if schedule.replay is not None else repr(schedule.dataset),
        "arrivals": "replay" if schedule.replay is not None else repr(schedule.arrivals),
        "rate": None if schedule.closed or schedule.replay is not None else schedule.rate,
        "seconds": schedule.seconds,
        "requests": schedule.requests,
        "seed": schedule.seed,
    }


def _ratios(runs: Mapping[str, Sequence[LoadRun]]) -> dict[str, dict[str, list[float]]]:
    """The first server's figures over each other's, turn by turn: `[least, median, largest]`, by name and figure."""
    first, *others = runs
    found: dict[str, dict[str, list[float]]] = {}
    for name in others:
        pairs = list(zip(runs[first], runs[name], strict=True))
        found[name] = {}
        for figure, measure in (("output_tokens_per_second", written_per_second), ("ttft_p95_seconds", _first_p95)):
            each = [ours / theirs for ours, theirs in ((measure(a), measure(b)) for a, b in pairs) if ours and theirs]
            if each:
                found[name][figure] = [min(each), median(each), max(each)]
    return found


def _first_p95(run: LoadRun) -> float:
    first = [each.ttft for each in run.exchanges if each.completed]
    return float(np.percentile(first, 95)) if first else 0.0


def _exchange(exchange: Exchange, turn: int) -> dict[str, Any]:
    """A request and its times, in seconds from the start of its run."""
    reply = exchange.reply
    line: dict[str, Any] = {"run": turn, "caller": exchange.caller, "turn": exchange.turn}
    line |= {name: round(getattr(exchange, name), 6) for name in ("due", "came", "sent", "ended")}
    if reply.error is not None:
        return line | {"error": reply.error, "detail": reply.detail}
    line |= {"prompt_tokens": reply.prompt_tokens, "tokens": exchange.tokens, "finish_reason": reply.finish_reason}
    line |= {"tpot": exchange.tpot, "chunk_times": [round(time, 6) for time in reply.times]}
    return line | ({"adaptc": dict(reply.trace)} if reply.trace else {})
