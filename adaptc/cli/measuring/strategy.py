"""The command `adaptc strategy`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from adaptc.cli.options import BUNDLE, JSON


@click.command("strategy")
@BUNDLE
@click.option("--size", type=click.IntRange(1, 256), default=32, show_default=True, help="Number of requests of a job.")
@click.option("--accuracy", type=click.FloatRange(0, 1), help="Print only the cheapest way with this accuracy.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the lists of several sizes into this PNG file.",
)
@JSON
def command(bundle: Path, size: int, accuracy: float | None, plot: Path | None, as_json: bool) -> None:
    """Print the ways to do a job that no other way beats.

    Each is a number of requests for each subset of modalities, with its seconds and its expected accuracy: the exact
    optimum of the integer program, by dynamic programming over the profile.
    """
    from adaptc.errors import RequestError
    from adaptc.runtime.bundle.folder import open_bundle
    from adaptc.runtime.model.plan import is_modal
    from adaptc.runtime.multimodal.modality_gate import modality_options
    from adaptc.runtime.multimodal.profile import read_profile
    from adaptc.runtime.multimodal.strategy import Strategies

    opened = open_bundle(bundle)
    if not is_modal(opened.manifest):
        raise RequestError(f"{bundle}: has no modalities to leave out; drop_modality makes a bundle that has")
    profile = read_profile(opened)
    if profile is None:
        raise RequestError(f"{bundle}: no profile; adaptc profile {bundle} --data FILE makes one")
    strategies = Strategies(modality_options(profile), size)
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
