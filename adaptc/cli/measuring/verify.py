"""The command `adaptc verify`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from adaptc.cli.options import BASE, BUNDLE, JSON, ROUTES, THREADS
from adaptc.cli.output import print_result, status_line


@click.command("verify")
@BUNDLE
@click.option(
    "--numbers/--no-numbers", default=True, show_default=True, help="Compare numbers with the source model too."
)
@ROUTES
@THREADS
@BASE
@JSON
def command(
    bundle: Path, numbers: bool, routes: tuple[str, ...], threads: int | None, base: Path, as_json: bool
) -> None:
    """Check a bundle: hashes, then numbers against the source model.

    Routes of a stitched bundle are compared with the layers and stitches that they are made of.
    """
    import importlib.util

    from adaptc.errors import BundleError
    from adaptc.evaluation.parity import LIMITS, faults
    from adaptc.evaluation.routes import routes_of
    from adaptc.evaluation.verify import parity_of, routes_parity
    from adaptc.runtime import open_bundle

    opened = open_bundle(bundle)
    weights = opened.manifest.target.weights
    result: dict[str, Any] = {"files": len(opened.manifest.files), "hashes": "ok", "weights": weights}
    absent = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    failures: list[str] = []
    if numbers and absent:
        click.echo(f"hashes only: {absent[0]} is not installed; pip install 'adaptc[compile]'", err=True)
    elif numbers:
        limits = LIMITS[weights]
        chosen = routes_of(opened, routes)
        if chosen:
            with status_line() as stage:
                parities = routes_parity(opened, base, chosen, threads, stage)
            failures = [f"{route}: {fault}" for route, each in parities.items() for fault in faults(each, limits)]
            result["routes"] = {route: dataclasses.asdict(each) for route, each in parities.items()}
        else:
            parity = parity_of(opened, base, threads)
            failures = faults(parity, limits)
            result |= dataclasses.asdict(parity)
        result["limits"] = dataclasses.asdict(limits)
    print_result(result | {"passed": not failures}, as_json)
    if failures:
        raise BundleError(f"{bundle}: not its source model in {weights}: {'; '.join(failures)}")
