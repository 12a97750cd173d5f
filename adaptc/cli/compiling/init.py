"""The command `adaptc init`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from adaptc.starting.advice import Goal


@click.command("init")
@click.argument("model")
@click.option(
    "--goal",
    type=click.Choice(["speed", "quality", "both"]),
    default="both",
    show_default=True,
    help="What the values are chosen for.",
)
@click.option("--revision", help="Branch, tag or commit of a hub id; org/name@REVISION says the same.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    default=Path("model.yaml"),
    show_default=True,
    help="File to write; - prints it.",
)
@click.option("--force", is_flag=True, help="Overwrite the file.")
def command(model: str, goal: Goal, revision: str | None, output: Path, force: bool) -> None:
    """Write a commented model.yaml for MODEL.

    MODEL is a hub id, a model's folder or a GGUF file. Its config is read, and this machine is looked at; no weight is
    read.
    """
    from adaptc.errors import SpecError
    from adaptc.sources.quiet import quiet_transformers
    from adaptc.starting.advice import advise
    from adaptc.starting.argument import SpecFile, read_argument
    from adaptc.starting.commented import commented

    printed = str(output) == "-"
    if not printed and output.exists() and not force:
        raise SpecError(f"{output}: exists; --force overwrites it, -o writes another file")
    named = read_argument(model)
    if isinstance(named, SpecFile):
        raise SpecError(f"{named.path}: a model.yaml; `adaptc init` takes a model")
    with quiet_transformers():
        advice = advise(named, revision, goal, Path() if printed else output.parent)
    text = commented(advice, "model.yaml" if printed else str(output))
    if printed:
        click.echo(text, nl=False)
        return
    output.write_text(text, encoding="utf-8")
    for line in advice.summary:
        click.echo(line)
    click.echo(f"wrote {output}; next: adaptc check {output}, then adaptc compile {output} -o bundle")
