"""What commands print on stdout: results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from adaptc.runtime.bundle.gate_verdict import GateVerdict

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


def print_facts(pairs: Iterable[tuple[str, str]]) -> None:
    """Print pairs of a name and a text: wrapped on a terminal, a plain line each elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    pairs = list(pairs)
    if not console.is_terminal:
        width = max((len(name) for name, _ in pairs), default=0)
        for name, value in pairs:
            click.echo(f"{name:{width}}  {value}")
        return
    table = Table.grid(padding=(0, 2))
    for name, value in pairs:
        table.add_row(Text(name, style="dim"), Text(value))
    console.print(table)


def print_gates(graph: str, verdict: GateVerdict) -> None:
    """Print what became of each gate of a graph, if they were judged one by one."""
    from rich.table import Table

    from adaptc.report.gates import gates_table

    if not verdict.each:
        return
    content = gates_table(verdict)
    table = Table(title=f"gates of {graph}", title_justify="left")
    for head in content.heads:
        table.add_column(head.text, justify="right" if head.number else "left", no_wrap=True)
    for row in content.rows:
        table.add_row(*row)
    print_table(table)
