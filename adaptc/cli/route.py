"""Commands of stitched programs: stitch-search, route."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adaptc.cli.build import CACHE, SETTING, _cache, _stages

if TYPE_CHECKING:
    from adaptc.runtime import Choice
    from adaptc.training.stitches.search import Found


@click.command("route")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--prompts", "file", type=click.Path(path_type=Path), required=True, help="A UTF-8 file, a prompt a line."
)
@click.option("--budget", type=click.FloatRange(0, 1), help="0 cheapest, 1 dearest; by default as it was calibrated.")
@click.option("--explain", is_flag=True, help="Also print what each route would lose and cost.")
@click.option("--threads", type=click.IntRange(1), help="By default the physical cores.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a prompt a line.")
def route_command(
    bundle: Path, file: Path, budget: float | None, explain: bool, threads: int | None, as_json: bool
) -> None:
    """Say which route a stitched bundle takes for prompts."""
    from dataclasses import asdict

    from adaptc import runtime
    from adaptc.evaluation.perplexity import read_text

    prompts = [line for line in read_text(file).splitlines() if line.strip()]
    taken: list[Choice] = []
    with runtime.load(bundle, threads=threads, batch=1) as session:
        for prompt in prompts:
            choice = session.choose(prompt, budget=budget)
            taken.append(choice)
            if as_json:
                threshold = choice.threshold if abs(choice.threshold) < float("inf") else None
                click.echo(json.dumps({"prompt": prompt, **asdict(choice), "threshold": threshold}))
                continue
            click.echo(f"{choice.route:12}  {_shown(prompt)}")
            for route, loss in choice.losses.items() if explain else ():
                fits = "within" if loss <= choice.threshold else "above"
                cost = choice.costs[route] / max(choice.costs.values())
                click.echo(
                    f"    {route:12}  loses {loss:+.3f} nats a token, {fits} {choice.threshold:.3f}; reads {cost:.0%}"
                )
    if not as_json:
        costs = [choice.costs[choice.route] / max(choice.costs.values()) for choice in taken]
        shares = {route: sum(c.route == route for c in taken) / len(taken) for route in taken[0].costs}
        click.echo(", ".join(f"{route} {share:.0%}" for route, share in shares.items()), err=True)
        click.echo(f"mean cost {sum(costs) / len(costs):.0%} of the dearest route's", err=True)


@click.command("stitch-search")
@click.argument("spec_file", metavar="SPEC", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("stitches"), show_default=True)
@SETTING
@click.option("--every", type=click.IntRange(1), default=2, show_default=True, help="Look at every so many layers.")
@click.option(
    "--keep", type=click.IntRange(1), default=12, show_default=True, help="Measure so many, spread over cost."
)
@click.option("--steps", type=click.IntRange(0), default=0, show_default=True, help="Train them so long first.")
@click.option("--tokens", type=click.IntRange(256), default=4096, show_default=True, help="Measured on so many.")
@click.option("--rows", type=click.IntRange(1), default=4, show_default=True, help="Sequences in a step.")
@click.option("--window", type=click.IntRange(16), default=256, show_default=True, help="Tokens of a sequence.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="For the measured milliseconds; by default the cores.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@CACHE
def search_command(
    spec_file: Path,
    output: Path,
    settings: tuple[str, ...],
    every: int,
    keep: int,
    steps: int,
    tokens: int,
    rows: int,
    window: int,
    device: str,
    threads: int | None,
    as_json: bool,
    cache_dir: Path | None,
) -> None:
    """Rank the places where two models can be stitched.

    Writes search.json and search.png into the output folder.
    """
    from adaptc.plots.stitches import draw
    from adaptc.spec.schema import read_spec
    from adaptc.training.gates.spec import device_of
    from adaptc.training.recipe import Recipe
    from adaptc.training.stitches.search import Limits, search

    spec = read_spec(spec_file, settings)
    recipe = Recipe(steps=steps, rows=rows, window=window)
    limits = Limits(every, keep, tokens, threads)
    with _stages(None) as stage:
        found = search(spec, spec_file.parent, recipe, limits, device_of(device), _cache(cache_dir), stage)
    output.mkdir(parents=True, exist_ok=True)
    (output / "search.json").write_text(json.dumps(found.record(), indent=2))
    draw(found, output / "search.png")
    if as_json:
        click.echo(json.dumps(found.record(), indent=2))
    else:
        _print(found)
    click.echo(f"wrote {output / 'search.json'} and {output / 'search.png'}", err=True)


def _print(found: Found) -> None:
    click.echo(f"{found.enumerated} stitches, {found.dearer} of them dearer than a donor; the rest by KL:")
    click.echo("cut  entry  bytes a token  ms a token  KL (nats)  log-perplexity  to the line")
    for each in found.stitches:
        click.echo(
            f"{each.cut:3}  {each.entry:5}  {each.bytes / found.most_bytes:12.1%}  {each.ms:10.2f}  {each.kl:9.4f}  "
            f"{each.log_perplexity:14.4f}  {found.above(each):+11.4f}"
        )
    for donor in found.donors:
        click.echo(
            f"{donor.name:10}  {donor.bytes / found.most_bytes:12.1%}  {donor.ms:10.2f}  {donor.kl:9.4f}  "
            f"{donor.log_perplexity:14.4f}"
        )


def _shown(prompt: str) -> str:
    return prompt if len(prompt) <= 80 else prompt[:77] + "..."
