"""What commands print: results on stdout, progress on stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

_STYLES = {"ok": "green", "warn": "yellow", "error": "red", "absent": "dim"}


def print_result(result: Mapping[str, Any], as_json: bool, prefix: str = "") -> None:
    """Print one result: JSON, or a line for each value; values of a nested mapping stand after its name."""
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        if isinstance(value, Mapping):
            print_result(value, False, f"{prefix}{name} ")
        elif value is not None:
            click.echo(f"{prefix + name:18} {f'{value:.4g}' if isinstance(value, float) else value}")


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print columns: wrapped and coloured on a terminal, one plain line a row elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            click.echo("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    console.print(table)


def print_table(table: Table, width: int = 120) -> None:
    """Print a table, `width` characters wide where the output is no terminal."""
    from rich.console import Console

    console = Console()
    # Into a file or a pipe rich assumes 80 columns, which cuts names short.
    (console if console.is_terminal else Console(width=width)).print(table)


@contextmanager
def progress_bar(total: int, name: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, if that is a terminal; yields a function that takes how much is done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def status_line() -> Iterator[Callable[[str], None]]:
    """One changing line on stderr, or a line each where that is no terminal; yields a function that takes its text."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: click.echo(text, err=True)
        return
    with console.status("") as status:
        yield lambda text: status.update(text)


@contextmanager
def stage_timer(count: Callable[[], int] | None = None) -> Iterator[Callable[[str], None]]:
    """A progress bar on stderr that leaves a line, with its time, for each finished stage.

    Args:
        count: Gives the number of stages. It is asked once torch is loaded, as the passes need it to be counted.
            None where nobody knows.

    Yields:
        A function that takes the name of the stage that begins.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from adaptc.compiler.stage_names import LOAD

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        current: tuple[str, float] | None = None

        def finish() -> None:
            if current is not None:
                console.print(f"  [dim]{time.perf_counter() - current[1]:6.1f} s[/]  {current[0]}", highlight=False)

        def stage(name: str) -> None:
            nonlocal current
            finish()
            if count is not None and current is not None and current[0] == LOAD:
                progress.update(task, total=count())
            current = (name, time.perf_counter())
            progress.update(task, description=name, advance=1)

        yield stage
        finish()
