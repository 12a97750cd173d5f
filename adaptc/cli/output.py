"""What commands print on stdout: results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
