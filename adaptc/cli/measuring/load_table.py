"""The figures of `adaptc bench --serve`, printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from adaptc.cli.output import print_facts, print_table

_LATENCIES = {
    "first token (TTFT)": "ttft_seconds",
    "each further (TPOT)": "tpot_seconds",
    "between chunks (ITL)": "itl_seconds",
    "whole answer (E2E)": "e2e_seconds",
}


def print_load(report: Mapping[str, Any]) -> None:
    """The figures as tables, and lines for what needs words."""
    results = report["results"]
    _print_latencies(results)
    _print_throughput(results, report["settings"]["targets"])
    _print_ratios(next(iter(results)), report["ratios"])
    for name, found in results.items():
        click.echo(f"\n{name}: {found['model']}")
        print_facts(_facts(found))


def _print_latencies(results: Mapping[str, Any]) -> None:
    from rich.table import Table

    table = Table(title="latency, ms", title_justify="left")
    table.add_column("", no_wrap=True)
    if len(results) > 1:
        table.add_column("server", no_wrap=True)
    shares = ("mean", "p50", "p90", "p95", "p99")
    for title in shares:
        table.add_column(title, justify="right", no_wrap=True)
    for label, key in _LATENCIES.items():
        for place, (name, found) in enumerate(results.items()):
            spread = found[key]
            cells = [_ms(spread[share]) if spread else "–" for share in shares]
            last = place == len(results) - 1 and len(results) > 1
            table.add_row("" if place else label, *([name] if len(results) > 1 else []), *cells, end_section=last)
    print_table(table)


def _print_throughput(results: Mapping[str, Any], targets: Mapping[str, float]) -> None:
    from rich.table import Table

    caption = "good: " + ", ".join(f"{name} within {most:g} s" for name, most in targets.items()) if targets else None
    table = Table(title="throughput", title_justify="left", caption=caption, caption_justify="left")
    table.add_column("server", no_wrap=True)
    titles = ["sent", "answered", "errors", "answered/s", "written\ntokens/s", "read\ntokens/s"]
    titles += ["good/s", "good"] if targets else []
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for name, found in results.items():
        failed = found["requests"] - found["completed"]
        cells = [str(found["requests"]), str(found["completed"]), f"[red]{failed}[/]" if failed else "0"]
        cells += [_number(found[f"{key}_per_second"]) for key in ("requests", "output_tokens", "input_tokens")]
        if targets:
            share = found["good_share"]
            cells += [_number(found["goodput_requests_per_second"]), "–" if share is None else f"{share:.1%}"]
        table.add_row(name, *cells)
    print_table(table)


def _print_ratios(first: str, ratios: Mapping[str, Any]) -> None:
    """The first server's figures over the others', turn by turn."""
    from rich.table import Table

    if not ratios:
        return
    table = Table(title=f"ratios: {first} over", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("written tokens/s", justify="right", no_wrap=True)
    table.add_column("TTFT p95", justify="right", no_wrap=True)
    for name, figures in ratios.items():
        table.add_row(name, *(_ratio(figures.get(key)) for key in ("output_tokens_per_second", "ttft_p95_seconds")))
    print_table(table)


def _facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What needs words: sizes, errors, adaptc's own account, and the generator's."""
    sizes = [f"{_number(found['mean_input_tokens'])} read", f"{_number(found['mean_output_tokens'])} written"]
    if found["mean_cached_tokens"] is not None:
        sizes.insert(1, f"{_number(found['mean_cached_tokens'])} of them known")
    counted = "" if found["tokens_counted_by_server"] else "; not all were counted by the server: a chunk counts as one"
    per_chunk = found["tokens_per_chunk"]
    chunks = f"; {per_chunk:.1f} in a chunk" if per_chunk is not None and per_chunk > 1.2 else ""
    yield "tokens of a request", ", ".join(sizes) + counted + chunks
    for kind, error in found["errors"].items():
        yield f"error: {kind}", f"{error['count']} ×, first: {error['first']}"
    told = found["adaptc"] or {"words": {}, "means": {}}
    for field, counts in told["words"].items():
        yield f"adaptc: {field}", ", ".join(f"{word} {count} ×" for word, count in counts.items())
    for field, (mean, number) in told["means"].items():
        yield f"adaptc: {field}", f"{mean:.4g}" + ("" if number == found["completed"] else f" (of {number} answers)")
    own = found["generator"]
    yield "sent late by", f"{_ms(own['lag_p99_seconds'])} ms (99 %), {_ms(own['lag_max_seconds'])} ms (most)"
    yield "seen late by", f"{_ms(own['stall_p99_seconds'])} ms (99 %), {_ms(own['stall_max_seconds'])} ms (most)"
    cost = own["cpu_seconds_per_chunk"]
    chunk = "" if cost is None else f"{cost * 1e6:.0f} µs of a processor for a chunk, "
    yield "generator's cost", f"{chunk}{own['core_share']:.1%} of a core"
    if (waited := own["waited_for_concurrency_seconds"]) is not None and waited > 1e-3:
        yield "--concurrency", f"requests waited for {_ms(waited)} ms, which latencies include"


def _ms(seconds: float) -> str:
    ms = seconds * 1e3
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _ratio(spread: Sequence[float] | None) -> str:
    if spread is None:
        return "–"
    least, middle, most = spread
    return f"{middle:.2f} ×" if least == most else f"{middle:.2f} × ({least:.2f}–{most:.2f})"
