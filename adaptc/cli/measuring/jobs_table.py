"""The figures of `adaptc bench --jobs`, printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from adaptc.cli.output import print_table


def print_jobs(figures: Mapping[str, Any]) -> None:
    """The figures as a table."""
    from rich.table import Table

    turns = f"medians of {len(figures['turns'])} turns"
    table = Table(caption=f"{figures['machine']['cpu']}, {figures['threads']} threads; {turns}")
    titles = ("arrivals", "policy", "requests/s", "mean done, s", "95 %, s", "accuracy", "late", "under floor")
    for title in titles:
        table.add_column(title, justify="left" if title in titles[:2] else "right", no_wrap=True)
    for kind, label in (("saturated", "all at once"), ("poisson", "Poisson"), ("bursty", "bursty")):
        for name, each in figures[kind].items():
            times = f"{each['mean_completion_seconds']:.3f}", f"{each['p95_completion_seconds']:.3f}"
            late, under = f"{each['deadlines_missed']:.0f}/{each['jobs']:.0f}", f"{each['jobs_under_floor']:.0f}"
            speed = f"{each['requests_per_second']:.0f}"
            table.add_row(label, name, speed, *times, f"{each['accuracy']:.4f}", late, under)
    print_table(table, width=110)
    for key, (low, high) in figures["ranges"].items():
        click.echo(f"{key:28} {figures[key]:.4g} ({low:.4g} to {high:.4g})")
    for key in ("accuracy_full", "accuracy_adaptive"):
        click.echo(f"{key:28} {figures[key]:.4g}")
    if "gate" in figures:
        gate = figures["gate"]
        click.echo(f"{'auto took at the end':28} {figures['chosen']}")
        click.echo(f"{'gate calibration error':28} {gate['calibration_error']:.3f}")
        if gate["cost_ratio"] is not None:
            click.echo(f"{'gate cost / table cost':28} {gate['cost_ratio']:.2f} at equal accuracy")
