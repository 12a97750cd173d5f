"""The command `adaptc route`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adaptc.cli.options import BUNDLE, JSON, THREADS
from adaptc.cli.running.requests import load_session

if TYPE_CHECKING:
    from adaptc.runtime import Choice


@click.command("route")
@BUNDLE
@click.option(
    "--prompts", "file", type=click.Path(path_type=Path), required=True, help="A UTF-8 file with a prompt on each line."
)
@click.option(
    "--budget",
    type=click.FloatRange(0, 1),
    help="0 is cheapest, 1 is dearest; by default as the router was calibrated.",
)
@click.option("--explain", is_flag=True, help="Also print what each route would lose and cost.")
@THREADS
@JSON
def command(bundle: Path, file: Path, budget: float | None, explain: bool, threads: int | None, as_json: bool) -> None:
    """Say which route a stitched bundle takes for prompts."""
    from dataclasses import asdict

    from adaptc.evaluation.text import read_text
    from adaptc.runtime import open_bundle
    from adaptc.runtime.model.plan import refuse_encoder

    refuse_encoder(open_bundle(bundle, verify=False))
    prompts = [line for line in read_text(file).splitlines() if line.strip()]
    taken: list[Choice] = []
    with load_session(bundle, threads=threads, batch=1) as session:
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


def _shown(prompt: str) -> str:
    return prompt if len(prompt) <= 80 else prompt[:77] + "..."
