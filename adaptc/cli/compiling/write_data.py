"""The command `adaptc write-data`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from adaptc.cli.options import CACHE, DEVICE, JSON, SETTINGS, SPEC, open_cache
from adaptc.cli.progress import shown_progress


@click.command("write-data")
@SPEC
@click.option("--tokens", type=click.IntRange(1), required=True, help="Number of tokens of all chats in the file.")
@click.option("--model", "name", help="The model of SPEC that writes; by default the largest.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("chats.jsonl"),
    show_default=True,
    help="File to write; one that is there is gone on with.",
)
@SETTINGS
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Longest time of writing.")
@click.option("--window", type=click.IntRange(128), default=1024, show_default=True, help="Most tokens of a chat.")
@click.option("--slots", type=click.IntRange(1), help="Texts written at the same time; by default 2048 or 12.")
@click.option(
    "--without",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="File of texts, such as an evaluation's questions, that no request may be like. May be repeated.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@DEVICE
@click.option(
    "--engine",
    type=click.Choice(["adaptc", "torch"]),
    help="What runs the model; by default torch on a GPU, and adaptc's runtime on a CPU.",
)
@click.option("--restart", is_flag=True, help="Begin anew, whatever file is there.")
@JSON
@CACHE
def command(
    spec_file: Path,
    tokens: int,
    name: str | None,
    output: Path,
    settings: tuple[str, ...],
    seconds: float | None,
    window: int,
    slots: int | None,
    without: tuple[Path, ...],
    seed: int,
    device: str,
    engine: str | None,
    restart: bool,
    as_json: bool,
    cache_dir: Path | None,
) -> None:
    """Have a model write chats, to calibrate and train on.

    The model of SPEC writes requests of many kinds, and answers to them, under its own chat template. A file that is
    there is gone on with, so a command that was interrupted is given again.
    """
    from adaptc.spec.reading import read_spec
    from adaptc.training.workspace import device_of
    from adaptc.writing.exclusion import excluded
    from adaptc.writing.recipe import WritingRecipe
    from adaptc.writing.run import WritingLimits, WritingPlace, write_data

    if engine == "adaptc" and device == "cuda":
        raise click.UsageError("--engine adaptc: chats are written by torch on a GPU; leave it out")
    spec = read_spec(spec_file, settings)
    place = WritingPlace(
        spec_file.parent,
        output,
        open_cache(cache_dir),
        "cuda" if device_of(device) == "cuda" else "cpu",
        engine == "torch",
        restart,
    )
    with shown_progress() as progress:
        result = write_data(
            spec,
            WritingRecipe(seed=seed, window=window),
            WritingLimits(tokens, seconds, slots),
            place,
            name=name,
            without=excluded(without),
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps({**asdict(result), "tokens_per_second": result.tokens_per_second}, indent=2))
        return
    click.echo(
        f"{result.chats} chats of {result.tokens} tokens, {result.answer_tokens} of them of answers; "
        f"{result.written} tokens written in {result.seconds:.0f} s, {result.tokens_per_second:.0f} tokens/s"
    )
    click.echo("fates: " + ", ".join(f"{each} {count}" for each, count in sorted(result.fates.items())))
    click.echo(f"wrote {output}", err=True)
