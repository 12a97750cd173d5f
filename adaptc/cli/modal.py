"""Commands for models that run on subsets of their modalities: profile, strategy, and the jobs of bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptc.cli.measure import BUNDLE, JSON, THREADS, status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptc.runtime.multimodal.profile import Profile

DATA = click.option(
    "--data",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="An .npz file: inputs by name, and 'labels'.",
)


@click.command("profile")
@BUNDLE
@DATA
@click.option("--gate/--no-gate", default=True, show_default=True, help="Fit a gate that chooses for each request.")
@click.option("--largest-batch", type=click.IntRange(1, 1024), default=32, show_default=True)
@THREADS
@JSON
def profile_command(
    bundle: Path, data: Path, gate: bool, largest_batch: int, threads: int | None, as_json: bool
) -> None:
    """Measure every subset of modalities, into the bundle.

    Accuracy on labelled rows that training did not see, seconds on this machine; run it again where the bundle is used.
    """
    from adaptc.bench.profiling import profile_bundle

    with status() as stage:
        profile = profile_bundle(bundle, data, threads=threads, largest_batch=largest_batch, gate=gate, stage=stage)
    if as_json:
        click.echo(profile.to_json(), nl=False)
    else:
        _print_profile(profile)


def _print_profile(profile: Profile) -> None:
    from rich.console import Console
    from rich.table import Table

    last = profile.batches[-1]
    table = Table(caption=f"{profile.rows} rows; {profile.cpu}, {profile.threads} threads")
    for title in ("subset", "accuracy", "95 %", "ms, batch 1", f"ms, batch {last}"):
        table.add_column(title, justify="left" if title == "subset" else "right", no_wrap=True)
    for each in profile.subsets:
        interval = f"{each.low:.3f} to {each.high:.3f}"
        first, most = (f"{each.seconds[index] * 1e3:.2f}" for index in (0, -1))
        table.add_row("+".join(each.modalities), f"{each.accuracy:.3f}", interval, first, most)
    Console(width=100).print(table)
    gate = profile.gate
    if gate is None:
        click.echo("no gate: no subset is cheap enough to begin with")
        return
    click.echo(f"gate: reads {'+'.join(gate.subsets[0])}; calibration error {gate.error:.3f} on held-out rows")
    for index, level in enumerate(gate.levels):
        shares = {"+".join(s): f"{share:.0%}" for s, share in zip(gate.subsets, level.shares, strict=True) if share}
        shown = ", ".join(f"{name} {share}" for name, share in shares.items())
        click.echo(f"gate@{index}: accuracy {level.accuracy:.3f} ({level.low:.3f} to {level.high:.3f}); {shown}")


@click.command("strategy")
@BUNDLE
@click.option("--size", type=click.IntRange(1, 256), default=32, show_default=True, help="Requests of a job.")
@click.option("--accuracy", type=click.FloatRange(0, 1), help="Only the cheapest way that has it.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the lists of several sizes (PNG).")
@JSON
def strategy_command(bundle: Path, size: int, accuracy: float | None, plot: Path | None, as_json: bool) -> None:
    """Print the ways to do a job that no other way beats.

    Each is a number of requests for each subset of modalities, with its seconds and its expected accuracy: the exact
    optimum of the integer program, by dynamic programming over the profile.
    """
    from adaptc.errors import RequestError
    from adaptc.runtime.multimodal.gate import options
    from adaptc.runtime.multimodal.profile import read_profile
    from adaptc.runtime.multimodal.strategy import Strategies

    profile = read_profile(bundle)
    if profile is None:
        raise RequestError(f"{bundle}: no profile; adaptc profile {bundle} --data FILE makes one")
    strategies = Strategies(options(profile), size)
    front = strategies.front(size) if accuracy is None else [strategies.best(size, accuracy)]
    names = [option.name for option in strategies.options]
    rows: list[dict[str, Any]] = [
        {
            "seconds": point.seconds,
            "accuracy": point.accuracy,
            "requests": {name: count for name, count in zip(names, point.counts, strict=True) if count},
        }
        for point in front
    ]
    if plot is not None:
        from adaptc.plots.strategies import plot_strategies

        plot_strategies(profile, strategies, plot)
        click.echo(f"wrote {plot}", err=True)
    if as_json:
        click.echo(json.dumps({"size": size, "points": rows}, indent=2))
        return
    for row in rows:
        shown = ", ".join(f"{count} × {name}" for name, count in row["requests"].items())
        click.echo(f"{row['seconds'] * 1e3:9.3f} ms  accuracy {row['accuracy']:.4f}  {shown}")


def bench_jobs(
    bundle: Path, data: Path, jobs: int, seed: int, threads: int | None, plot: Path | None
) -> dict[str, Any]:
    """What `adaptc bench --jobs` does; returns the figures."""
    from adaptc.bench.jobs import bench_jobs as measure
    from adaptc.bench.replay import Load

    with status() as stage:
        found = measure(bundle, data, Load(jobs=jobs, seed=seed), threads=threads, stage=stage)
    if plot is not None:
        from adaptc.plots.strategies import plot_replay

        plot_replay(found, plot)
        click.echo(f"wrote {plot}", err=True)
    return found


def print_jobs(found: Mapping[str, Any]) -> None:
    """The figures as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(caption=f"{found['machine']['cpu']}, {found['threads']} threads")
    titles = ("arrivals", "policy", "requests/s", "mean done, s", "95 %, s", "accuracy", "late", "under floor")
    for title in titles:
        table.add_column(title, justify="left" if title in titles[:2] else "right", no_wrap=True)
    for kind, label in (("saturated", "all at once"), ("poisson", "Poisson"), ("bursty", "bursty")):
        for name, each in found[kind].items():
            times = f"{each['mean_completion_seconds']:.3f}", f"{each['p95_completion_seconds']:.3f}"
            late, under = f"{each['deadlines_missed']}/{each['jobs']}", str(each["jobs_under_floor"])
            speed = f"{each['requests_per_second']:.0f}"
            table.add_row(label, name, speed, *times, f"{each['accuracy']:.4f}", late, under)
    Console(width=110).print(table)
    for key in ("throughput_ratio", "job_completion_ratio", "accuracy_full", "accuracy_adaptive"):
        click.echo(f"{key:24} {found[key]:.4g}")
    if "gate" in found:
        gate = found["gate"]
        click.echo(f"{'gate calibration error':24} {gate['calibration_error']:.3f}")
        if gate["cost_ratio"] is not None:
            click.echo(f"{'gate cost / table cost':24} {gate['cost_ratio']:.2f} at equal accuracy")
