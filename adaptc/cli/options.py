"""Arguments and options that several commands take."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from adaptc.compiler.cache import Cache

F = TypeVar("F", bound=Callable[..., Any])

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
RUNS_ON = click.option(
    "--device",
    metavar="auto|cpu|cuda[:N]",
    default="auto",
    show_default=True,
    help="Where the bundle runs; auto is a GPU if there is one that runs it.",
)
UNPAID = click.option(
    "--unpaid",
    type=click.Choice(["warn", "refuse", "allow"]),
    help="What happens to a budget that skips too few blocks to be quicker than running all; by default one warning.",
)
DEVICE = click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_SECONDS = click.FloatRange(0, min_open=True)
_LOAD_TARGETS = (
    click.option("--target-ttft", type=_SECONDS, help="Seconds to the first token, kept by lowering budgets."),
    click.option("--target-tpot", type=_SECONDS, help="Seconds for each further token, kept by lowering budgets."),
    click.option(
        "--min-budget",
        type=click.FloatRange(0, 1),
        help="Lowest budget under load for requests that name none; by default 0.5.",
    ),
)


def load_targets(command: F) -> F:
    """Add what a server keeps under load by lowering budgets."""
    for option in reversed(_LOAD_TARGETS):
        command = option(command)
    return command


def open_cache(folder: Path | None) -> Cache:
    """The cache in a folder, or the user's own for None."""
    from adaptc.compiler.cache import Cache

    return Cache(folder) if folder is not None else Cache.default()


def refuse_given(names: Iterable[str], why: str) -> None:
    """Refuse options of the current command that were given and would do nothing.

    Args:
        names: Of their parameters.
        why: What is right, for the message.

    Raises:
        click.UsageError: one was given.
    """
    for name in names:
        if click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')}: {why}")
