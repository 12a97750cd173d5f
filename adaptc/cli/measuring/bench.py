"""The command `adaptc bench`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from adaptc.cli.measuring.jobs_table import print_jobs
from adaptc.cli.measuring.load import bench_servers
from adaptc.cli.measuring.load_options import BenchCommand, load_options
from adaptc.cli.measuring.speculation import SPECULATION_NAMES, bench_drafters, speculation_options
from adaptc.cli.options import BASE, CACHE, JSON, ROUTES, THREADS, open_cache, refuse_given
from adaptc.cli.output import print_table
from adaptc.cli.progress import shown_progress


@click.command("bench", cls=BenchCommand)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--against", metavar="NAMES", default="", help="Other engines to measure, separated by commas, or `all`.")
@click.option("--prompt-tokens", type=click.IntRange(1), default=90, show_default=True)
@click.option("--new-tokens", type=click.IntRange(2), show_default="64, with --speculate 128")
@click.option(
    "--long-tokens",
    type=click.IntRange(0),
    default=512,
    show_default=True,
    help="Tokens of a second prompt, which is only read; 0 leaves it out.",
)
@ROUTES
@click.option(
    "--repeats",
    type=click.IntRange(1),
    show_default="5, of a server 1, with --speculate 3",
    help="Number of turns of each engine, server or drafter.",
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    show_default="3, of --prompts all",
    help="Number of answers in a turn; with --speculate of prompts of a kind.",
)
@speculation_options
@click.option("--jobs", type=click.IntRange(2), help="Replay this many jobs instead, on a bundle with modalities.")
@click.option(
    "--data", type=click.Path(dir_okay=False, path_type=Path), help="An .npz file of labelled rows, for --jobs."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of jobs, loads and prompts.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the figures of jobs or loads into this PNG file.",
)
@THREADS
@BASE
@CACHE
@JSON
@load_options
def command(
    bundle: Path | None,
    repeats: int | None,
    jobs: int | None,
    data: Path | None,
    seed: int,
    plot: Path | None,
    threads: int | None,
    as_json: bool,
    **other: Any,
) -> None:
    """Measure a bundle's speed, and other engines' beside it; or servers under a load.

    Each engine runs in a process of its own; they take turns. Figures are medians. Routes of a stitched bundle are
    measured as if they were engines. With --jobs, jobs with floors and deadlines are replayed under four policies,
    which take turns as well (docs/modalities.md). With --speculate, prompts of several kinds are answered without
    speculation and with each drafter (docs/measuring.md).

    With --serve, requests are sent to a server of OpenAI's API when they are due, whatever became of those before, and
    the times of its answers are measured (docs/serving.md).
    """
    if bundle is None:
        bench_servers(other, repeats or 1, seed, plot, as_json)
        return
    if other["speculate"] is not None:
        bench_drafters(click.get_current_context().params)
        return
    refuse_given(SPECULATION_NAMES, "is for --speculate")
    if (jobs is None) != (data is None):
        raise click.UsageError("--jobs and --data go together")
    if jobs is not None and data is not None:
        replayed = _replay_jobs(bundle, data, jobs, seed, repeats or 5, threads, plot)
        if as_json:
            click.echo(json.dumps(replayed, indent=2))
        else:
            print_jobs(replayed)
        return
    _bench_engines(click.get_current_context().params)


def _bench_engines(options: Mapping[str, Any]) -> None:
    """Measure a bundle and other engines, print what was found, and exit with 1 if one failed.

    Args:
        options: Those of `adaptc bench`.
    """
    from adaptc.bench.comparison import bench, prompts, report_of
    from adaptc.bench.figures import BenchSettings
    from adaptc.bench.runners import runners_of
    from adaptc.evaluation.routes import routes_of
    from adaptc.runtime import open_bundle
    from adaptc.runtime.backends.onnxruntime_cpu.cores import physical_cores

    names = _peer_names(options["against"])
    opened = open_bundle(options["bundle"])
    chosen = routes_of(opened, options["routes"])
    settings = BenchSettings(
        threads=options["threads"] or physical_cores(),
        prompt_tokens=options["prompt_tokens"],
        new_tokens=options["new_tokens"] or 64,
        long_tokens=options["long_tokens"],
        rounds=options["repeats"] or 5,
        samples=options["samples"] or 3,
    )
    ids = prompts(opened, settings)
    with shown_progress() as progress:
        runners, missing = runners_of(
            opened, names, chosen, options["base"], open_cache(options["cache_dir"]), progress
        )
        results, failed = bench(runners, ids, settings, progress)
    report = report_of(results, settings, missing, failed)
    if options["as_json"]:
        click.echo(json.dumps(report, indent=2))
    else:
        _print_bench(report)
    for name, reason in (missing | failed).items():
        click.echo(reason if reason.startswith(name) else f"{name}: {reason}", err=True)
    disturbed = [name for name, result in results.items() if result["disturbed"] > result["samples"]]
    if disturbed:
        click.echo(
            f"other programs disturbed most samples, so these figures are too slow: {', '.join(disturbed)}", err=True
        )
    if failed:
        click.get_current_context().exit(1)


def _peer_names(against: str) -> list[str]:
    """The engines that `--against` names.

    Raises:
        click.BadParameter: one is not known.
    """
    from adaptc.bench.peers import PEERS

    names = list(dict.fromkeys(name.strip() for name in against.split(",") if name.strip()))
    if names == ["all"]:
        return list(PEERS)
    for name in names:
        if name not in PEERS:
            raise click.BadParameter(f"no engine {name!r}; there are: {', '.join(PEERS)}", param_hint="'--against'")
    return names


def _print_bench(report: Mapping[str, Any]) -> None:
    from rich.table import Table

    settings, machine = report["settings"], report["machine"]
    columns = {
        "decode\ntok/s": "decode_tokens_per_second",
        f"prefill {settings['prompt_tokens']}\ntok/s": "prefill_tokens_per_second",
        f"prefill {settings['long_tokens']}\ntok/s": f"prefill_{settings['long_tokens']}_tokens_per_second",
    }
    if not settings["long_tokens"]:
        columns.popitem()
    table = Table(caption=f"{machine['cpu']}, {settings['threads']} threads; medians, best in brackets")
    table.add_column("engine", no_wrap=True)
    own = next(iter(report["results"]))
    for title in (*columns, "first\ntoken", "memory", f"{own}\ndecodes"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, result in report["results"].items():
        speeds = [f"{result[key]:.1f} ({result['best'][key]:.1f})" for key in columns.values()]
        first = f"{result['time_to_first_token_seconds'] * 1e3:.0f} ms"
        memory = f"{result['peak_rss_bytes'] / 1e6:.0f} MB"
        ratio = report["ratios"].get(f"decode_vs_{name}")
        table.add_row(name, *speeds, first, memory, f"{ratio:.2f} ×" if ratio else "")
    print_table(table)


def _replay_jobs(
    bundle: Path, data: Path, jobs: int, seed: int, turns: int, threads: int | None, plot: Path | None
) -> dict[str, Any]:
    """Replay jobs, and draw their figures if a file is named."""
    from adaptc.bench.jobs import bench_jobs
    from adaptc.bench.replay import Load

    load = Load(jobs=jobs, seed=seed)
    with shown_progress() as progress:
        result = bench_jobs(bundle, data, load, turns=turns, threads=threads, progress=progress)
    if plot is not None:
        from adaptc.plots.strategies import plot_replay

        plot_replay(result, plot)
        click.echo(f"wrote {plot}", err=True)
    return result
