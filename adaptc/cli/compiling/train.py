"""The command `adaptc train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptc.cli.options import CACHE, SETTINGS, SPEC, open_cache
from adaptc.cli.progress import shown_progress

if TYPE_CHECKING:
    from adaptc.spec.schema import Spec
    from adaptc.training.recipe import Recipe
    from adaptc.training.workspace import Workspace


@click.command("train")
@SPEC
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; by default the one that SPEC names.",
)
@SETTINGS
@click.option(
    "--steps", type=click.IntRange(min=0), default=1000, show_default=True, help="Number of steps of the optimizer."
)
@click.option("--rows", type=click.IntRange(min=1), default=4, show_default=True, help="Number of sequences in a step.")
@click.option(
    "--window", type=click.IntRange(min=2), default=256, show_default=True, help="Number of tokens of a sequence."
)
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), default=1e-3, show_default=True)
@click.option(
    "--sample", "sampled", type=click.IntRange(min=0), default=0, help="Number of tokens to draw from the model itself."
)
@click.option(
    "--start",
    type=click.IntRange(64),
    default=8192,
    show_default=True,
    help="Number of tokens that the start is fitted to.",
)
@click.option(
    "--measured",
    type=click.IntRange(64),
    default=8192,
    show_default=True,
    help="Number of held-out tokens that gates are measured on, of scored and of written text each.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--part",
    type=click.Choice(["gates", "stitch", "router"]),
    help="What to train; by default the stitches of stitch, then its router, or the gates of skip_ffn.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop after so many minutes of steps, measure and write what there is; the same command goes on from there.",
)
@click.option(
    "--measure-only",
    is_flag=True,
    help="Keep the gates that SPEC names, and measure them on its text anew.",
)
@click.option("--restart", is_flag=True, help="Begin anew, and ignore what an interrupted run left.")
@click.option("--json", "as_json", is_flag=True, help="Print the metadata as JSON.")
@CACHE
def command(
    spec_file: Path,
    output: Path | None,
    settings: tuple[str, ...],
    steps: int,
    rows: int,
    window: int,
    learning_rate: float,
    sampled: int,
    start: int,
    measured: int,
    seed: int,
    device: str,
    part: str | None,
    minutes: float | None,
    measure_only: bool,
    restart: bool,
    as_json: bool,
    cache_dir: Path | None,
) -> None:
    """Train the gates of SPEC's skip_ffn, or its stitches and their router."""
    import json
    import math
    from dataclasses import asdict

    from adaptc.spec.reading import read_spec
    from adaptc.training.gates.run import train_gates
    from adaptc.training.recipe import Recipe
    from adaptc.training.stitches.run import stitch_of
    from adaptc.training.workspace import Workspace, device_of

    spec = read_spec(spec_file, settings)
    recipe = Recipe(
        steps=steps,
        rows=rows,
        window=window,
        learning_rate=learning_rate,
        start=start,
        measured=measured,
        seed=seed,
    )
    workspace = Workspace(
        spec_file.parent, output, open_cache(cache_dir), restart, device_of(device), (minutes or math.inf) * 60
    )
    stitch = stitch_of(spec)
    if part in ("stitch", "router") or (part is None and stitch is not None):
        has = {"stitch": stitch and stitch.weights, "router": stitch and stitch.router}
        _train_stitch(
            spec, recipe, workspace, [part] if part else [name for name, found in has.items() if found], as_json
        )
        return
    with shown_progress() as progress:
        written, metadata = train_gates(spec, recipe, sampled, workspace, progress, measure_only=measure_only)
    if as_json:
        click.echo(json.dumps(asdict(metadata), indent=2))
        return
    click.echo("blocks skipped  threshold  perplexity / dense (held-out text)")
    for (share, level), (_, ratio) in zip(metadata.thresholds, metadata.perplexity[1:], strict=True):
        click.echo(f"{share:13.1%}  {level:9.3f}  {ratio:.3f}")
    if metadata.written:
        click.echo("blocks skipped  threshold  KL to dense, nats a token (held-out answers)")
    for (share, level), (_, loss) in zip(metadata.written, metadata.written_loss[1:], strict=True):
        click.echo(f"{share:13.1%}  {level:9.3f}  {loss:.4f}")
    click.echo(f"wrote {written}", err=True)


def _train_stitch(spec: Spec, recipe: Recipe, workspace: Workspace, parts: list[str], as_json: bool) -> None:
    """Train stitches, a router or both, and print what was measured."""
    import json
    from dataclasses import asdict

    from adaptc.errors import SpecError
    from adaptc.training.stitches.run import train_router, train_stitches

    if not parts:
        raise SpecError("passes: nothing to train; stitch: 'weights' or 'router' names a file")
    results: dict[str, Any] = {}
    for each in parts:
        with shown_progress() as progress:
            if each == "stitch":
                written, metadata = train_stitches(spec, recipe, workspace, progress)
                results |= asdict(metadata)
            else:
                written, results["router"] = train_router(spec, recipe, workspace, progress)
        click.echo(f"wrote {written}", err=True)
    if as_json:
        click.echo(json.dumps(results, indent=2))
        return
    if "quality" in results:
        click.echo("held-out text         log-perplexity  KL to the teacher, nats a token")
        for name, measured in results["quality"].items():
            click.echo(f"{name:20}  {measured['log_perplexity']:14.4f}  {measured['kl']:.4f}")
    if "router" in results:
        router = results["router"]
        click.echo(f"router: area {router['area']:.3f} (0.5 is chance) on {router['prompts']} held-out prompts")
