"""The command `adaptc stitch-search`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from adaptc.cli.options import CACHE, JSON, SETTINGS, SPEC, open_cache
from adaptc.cli.progress import shown_progress

if TYPE_CHECKING:
    from adaptc.training.stitches.search_result import SearchResult


@click.command("stitch-search")
@SPEC
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("stitches"), show_default=True)
@SETTINGS
@click.option("--every", type=click.IntRange(1), default=2, show_default=True, help="Look at every n-th layer.")
@click.option(
    "--keep", type=click.IntRange(1), default=12, show_default=True, help="Measure this many places, spread over cost."
)
@click.option(
    "--steps",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Train the stitches for this many steps first.",
)
@click.option(
    "--tokens", type=click.IntRange(256), default=4096, show_default=True, help="Number of tokens to measure on."
)
@click.option(
    "--rows", type=click.IntRange(1), default=4, show_default=True, help="Number of sequences in a training step."
)
@click.option(
    "--window", type=click.IntRange(16), default=256, show_default=True, help="Number of tokens of a sequence."
)
@click.option(
    "--place",
    "places",
    multiple=True,
    help="Measure this place, such as small:10,large:15 (10 layers of small, then large from layer 15 on), instead of "
    "those found; may be repeated.",
)
@click.option(
    "--adapters", type=click.IntRange(0, 4096), default=0, show_default=True, help="Rank of adapters on the blocks."
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--threads",
    type=click.IntRange(0),
    help="Threads for the measured milliseconds, 0 to measure none and price by weights; by default one for each "
    "physical core.",
)
@JSON
@CACHE
def command(
    spec_file: Path,
    output: Path,
    settings: tuple[str, ...],
    every: int,
    keep: int,
    steps: int,
    tokens: int,
    rows: int,
    window: int,
    places: tuple[str, ...],
    adapters: int,
    device: str,
    threads: int | None,
    as_json: bool,
    cache_dir: Path | None,
) -> None:
    """Rank the places where two models can be stitched, into each other or past layers of their own.

    Quality is the KL to the larger model on the calibration text; of chats, on their answers.

    Writes search.json and search.png into the output folder.
    """
    from adaptc.passes.stitch.options import JoinOptions
    from adaptc.plots.stitches import draw
    from adaptc.spec.reading import read_spec
    from adaptc.training.recipe import Recipe
    from adaptc.training.stitches.candidates import StitchPlace
    from adaptc.training.stitches.search import SearchLimits, search
    from adaptc.training.workspace import device_of

    spec = read_spec(spec_file, settings)
    recipe = Recipe(steps=steps, rows=rows, window=window)
    kind: Literal["residual", "linear"] = "residual" if adapters else "linear"
    join = JoinOptions(kind=kind, adapters=adapters)
    limits = SearchLimits(every, keep, tokens, threads, tuple(map(StitchPlace.parse, places)), join)
    with shown_progress() as progress:
        result = search(spec, spec_file.parent, recipe, limits, device_of(device), open_cache(cache_dir), progress)
    output.mkdir(parents=True, exist_ok=True)
    (output / "search.json").write_text(json.dumps(result.record(), indent=2))
    draw(result, output / "search.png")
    if as_json:
        click.echo(json.dumps(result.record(), indent=2))
    else:
        _print(result)
    click.echo(f"wrote {output / 'search.json'} and {output / 'search.png'}", err=True)


def _print(result: SearchResult) -> None:
    click.echo(f"{result.enumerated} stitches, {result.dearer} of them dearer than a donor; measured on {result.read}:")
    click.echo("place                      bytes a token  ms a token  KL (nats)  to the line  log-perplexity")
    for each in result.stitches:
        click.echo(
            f"{each.place!s:25}  {each.bytes / result.most_bytes:13.1%}  {each.ms:10.2f}  {each.kl:9.4f}  "
            f"{result.above(each):+11.4f}  {each.log_perplexity:14.4f}"
        )
    for donor in result.donors:
        click.echo(
            f"{donor.name:25}  {donor.bytes / result.most_bytes:13.1%}  {donor.ms:10.2f}  {donor.kl:9.4f}  "
            f"{'':11}  {donor.log_perplexity:14.4f}"
        )
