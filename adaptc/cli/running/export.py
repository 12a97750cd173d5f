"""The command `adaptc export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from adaptc.cli.options import BUNDLE, load_targets

_ONLY = {
    "pools": ("ray",),
    "image": ("kubernetes",),
    "min_replicas": ("ray", "kubernetes"),
    "max_replicas": ("ray", "kubernetes"),
    "drain_seconds": ("ray", "docker", "kubernetes"),
    **dict.fromkeys(("target_ttft", "target_tpot", "min_budget"), ("ray", "docker", "kubernetes")),
    "copy": ("ray", "triton"),
}
"""Options that only some exports have."""


def _pools(context: click.Context, _: click.Parameter, given: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    pools = {}
    for text in given:
        name, equals, routes = text.partition("=")
        names = tuple(each.strip() for each in routes.split(",") if each.strip())
        if name in pools or (equals and not names):
            raise click.BadParameter(f"{text!r}; NAME or NAME=ROUTE,ROUTE is right, each name once", context)
        pools[name] = names
    return pools


@click.command("export")
@BUNDLE
@click.option(
    "--to", "kind", type=click.Choice(["ray", "triton", "docker", "kubernetes"]), required=True, help="What runs it."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write; by default NAME-KIND.")
@click.option("--name", help="What clients call the model; by default as the bundle's folder.")
@click.option("--copy/--no-copy", default=None, help="Copy the bundle into the folder, or name where it is now.")
@click.option("--threads", type=click.IntRange(1), help="Cores of a replica; by default 2.")
@click.option("--max-batch", type=click.IntRange(1), help="Sequences decoded together; by default as `adaptc serve`.")
@click.option("--max-queue", type=click.IntRange(0), help="Requests that may wait; by default 64.")
@load_targets
@click.option("--drain-seconds", type=float, help="Time to finish when told to end; by default 30.")
@click.option("--min-replicas", type=click.IntRange(1), help="Ray, Kubernetes: by default 1.")
@click.option("--max-replicas", type=click.IntRange(1), help="Ray, Kubernetes: by default 4.")
@click.option(
    "--pool",
    "pools",
    multiple=True,
    metavar="NAME[=ROUTE,...]",
    callback=_pools,
    help="Ray: replicas with these routes of a stitched bundle only; without, with all. May be repeated.",
)
@click.option("--image", help="Kubernetes: name of the container image; by default NAME:latest.")
def command(bundle: Path, kind: str, output: Path | None, name: str | None, **given: Any) -> None:
    """Write a folder that runs BUNDLE with Ray Serve, Triton, Docker or Kubernetes.

    The folder holds all that is needed, this adaptc included. An older export in its place is replaced.
    """
    from adaptc.exports.folder import write_export
    from adaptc.exports.kinds import EXPORTS
    from adaptc.exports.options import ExportOptions
    from adaptc.runtime.bundle.folder import open_bundle

    options = {option: value for option, value in given.items() if value not in (None, {})}
    for option in options:
        if kind not in _ONLY.get(option, EXPORTS):
            flag = "pool" if option == "pools" else option.replace("_", "-")
            raise click.UsageError(f"--{flag} is for {' and '.join(_ONLY[option])}; leave it out")
    opened = open_bundle(bundle)
    made = ExportOptions(name=name or opened.path.resolve().name, **options)
    made.check(opened)
    into = output or Path(f"{made.slug}-{kind}")
    exported = EXPORTS[kind](opened, made)
    write_export(into, exported, kind)
    click.echo(f"wrote {into}; {into / 'README.md'} says how to run it")
