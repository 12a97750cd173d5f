"""Figures of runs: latencies, throughput, errors, goodput, and whether the generator kept up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from adaptc.bench.load.exchange import Exchange
from adaptc.bench.load.generator import LoadRun

PERCENTILES = (50, 90, 95, 99)

TARGETS = ("ttft", "tpot", "e2e")
"""What targets may be set for, in seconds."""

BUSY = 0.9
"""A generator that kept a core busier than this share of the time is what was measured."""

_START = 1.0
"""Seconds: a run that is no longer begins and ends, and is busy with that."""


def load_figures(runs: Sequence[LoadRun], targets: Mapping[str, float], most_lag: float) -> dict[str, Any]:
    """The figures of a server over its runs.

    Args:
        runs: At least one.
        targets: Most seconds by one of `TARGETS`.
        most_lag: Most seconds by which 99 of 100 requests may be sent late.

    Returns:
        Seconds unless a name says otherwise; null for what nothing was known of.
    """
    exchanges = [each for run in runs for each in run.exchanges]
    done = [each for each in exchanges if each.completed]
    seconds = sum(run.seconds for run in runs)
    kept = sum(each.keeps(targets) for each in exchanges)
    chunks = sum(len(each.reply.times) for each in done)
    return {
        "requests": len(exchanges),
        "completed": len(done),
        "errors": _errors(exchanges),
        "seconds": seconds,
        "ttft_seconds": _spread(each.ttft for each in done),
        "tpot_seconds": _spread(each.tpot for each in done if each.tpot is not None),
        "itl_seconds": _spread(gap for each in done for gap in each.gaps),
        "e2e_seconds": _spread(each.e2e for each in done),
        "requests_per_second": sum(_ended(run) for run in runs) / seconds,
        "output_tokens_per_second": sum(_written(run) for run in runs) / seconds,
        "input_tokens_per_second": _read(runs, seconds),
        "output_tokens_per_second_of_each_run": [written_per_second(run) for run in runs],
        "goodput_requests_per_second": kept / seconds,
        "good_share": kept / len(exchanges) if exchanges else None,
        "mean_input_tokens": _mean(each.reply.prompt_tokens for each in done),
        "mean_output_tokens": _mean(each.tokens for each in done),
        "mean_cached_tokens": _mean(each.reply.cached_tokens for each in done),
        "tokens_per_chunk": sum(each.tokens for each in done) / chunks if chunks else None,
        "tokens_counted_by_server": bool(done) and all(each.reply.tokens is not None for each in done),
        "generator": _generator(runs, exchanges, chunks, most_lag),
        "adaptc": _traces(done),
    }


def _errors(exchanges: Sequence[Exchange]) -> dict[str, dict[str, Any]]:
    """How many errors of each kind, with the words of the first."""
    counts = Counter(each.reply.error for each in exchanges if each.reply.error is not None)
    words = {each.reply.error: each.reply.detail for each in reversed(exchanges)}
    return {kind: {"count": number, "first": words[kind]} for kind, number in counts.most_common()}


def _spread(values: Iterable[float]) -> dict[str, float] | None:
    """Mean and percentiles."""
    array = np.fromiter(values, float)
    if not array.size:
        return None
    named = zip(PERCENTILES, np.percentile(array, PERCENTILES), strict=True)
    return {"mean": float(array.mean())} | {f"p{share}": float(value) for share, value in named}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return sum(known) / len(known) if known else None


def _ended(run: LoadRun) -> int:
    """Requests whose last token came while the run counted."""
    return sum(each.completed and each.reply.times[-1] <= run.seconds for each in run.exchanges)


def written_per_second(run: LoadRun) -> float:
    """Tokens a second that came while a run counted."""
    return _written(run) / run.seconds


def _written(run: LoadRun) -> float:
    """Tokens that came while the run counted; an answer's are shared out among its chunks."""
    done = (each for each in run.exchanges if each.completed)
    return sum(each.tokens * _share(each.reply.times, run.seconds) for each in done)


def _share(times: Sequence[float], end: float) -> float:
    return sum(time <= end for time in times) / len(times)


def _read(runs: Sequence[LoadRun], seconds: float) -> float | None:
    """Tokens a second of prompts that were read while the runs counted; None if no server counts them."""
    read = [
        each.reply.prompt_tokens
        for run in runs
        for each in run.exchanges
        if each.completed and each.reply.times[0] <= run.seconds
    ]
    known = [tokens for tokens in read if tokens is not None]
    return sum(known) / seconds if known else None


def _generator(runs: Sequence[LoadRun], exchanges: Sequence[Exchange], chunks: int, most_lag: float) -> dict[str, Any]:
    """What the generator itself did, and whether the figures are the server's."""
    lag = np.array([each.came - each.due for each in exchanges] or [0.0])
    waited = [each.sent - each.came for each in exchanges]
    stalls = np.concatenate([np.array(run.stalls or (0.0,)) for run in runs])
    cpu, wall = sum(run.cpu for run in runs), sum(run.wall for run in runs)
    figures: dict[str, Any] = {
        "lag_p99_seconds": float(np.percentile(lag, 99)),
        "lag_max_seconds": float(lag.max()),
        "waited_for_concurrency_seconds": _mean(waited),
        "stall_p99_seconds": float(np.percentile(stalls, 99)),
        "stall_max_seconds": float(stalls.max()),
        "cpu_seconds_per_chunk": cpu / chunks if chunks else None,
        "core_share": cpu / wall,
    }
    wrong = []
    if figures["lag_p99_seconds"] > most_lag:
        wrong.append(f"it sent requests up to {figures['lag_p99_seconds'] * 1e3:.0f} ms late (99 %)")
    if figures["stall_p99_seconds"] > most_lag:
        wrong.append(f"its clock was late by {figures['stall_p99_seconds'] * 1e3:.0f} ms (99 %)")
    if wall > _START and figures["core_share"] > BUSY:
        wrong.append(f"it kept a core busy {figures['core_share']:.0%} of the time")
    return figures | {"kept_up": not wrong, "why_not": wrong}


def _traces(done: Sequence[Exchange]) -> dict[str, Any] | None:
    """What adaptc's servers tell of requests; None from others.

    Returns:
        `words`: by field, how often each word came; `means`: by field, the mean of its numbers and how many there were.
    """
    fields: dict[str, list[Any]] = {}
    for each in done:
        for name, value in each.reply.trace.items():
            fields.setdefault(name, []).append(value)
    words: dict[str, dict[str, int]] = {}
    means: dict[str, tuple[float, int]] = {}
    for name, values in fields.items():
        numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
        texts = Counter(value for value in values if isinstance(value, str))
        if texts:
            words[name] = dict(texts.most_common())
        if numbers:
            means[name] = sum(numbers) / len(numbers), len(numbers)
    return {"words": words, "means": means} if fields else None
