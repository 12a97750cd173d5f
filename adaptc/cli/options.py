"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from adaptc.compiler.cache import Cache

SPEC = click.argument("spec_file", metavar="SPEC", type=click.Path(path_type=Path))
BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
SETTINGS = click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change one key of the spec.")
CACHE = click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="ADAPTC_CACHE_DIR",
    help="Folder for finished stages and converted models; by default the user's cache folder.",
)
BASE = click.option(
    "--base",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder that paths in the bundle's spec start from; by default the current one.",
)
ROUTES = click.option(
    "--route", "routes", multiple=True, help="Route of a stitched bundle to measure; by default all. May be repeated."
)
THREADS = click.option("--threads", type=click.IntRange(1), help="By default one for each physical core.")
DEVICE = click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def open_cache(folder: Path | None) -> Cache:
    """The cache in a folder, or the user's own for None."""
    from adaptc.compiler.cache import Cache

    return Cache(folder) if folder is not None else Cache.default()
