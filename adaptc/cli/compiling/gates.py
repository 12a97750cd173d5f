"""The command `adaptc gates`."""

from __future__ import annotations

from pathlib import Path

import click

from adaptc.cli.options import BUNDLE


@click.command("gates")
@BUNDLE
@click.argument("file", type=click.Path(path_type=Path))
def command(bundle: Path, file: Path) -> None:
    """Put other trained gates into a bundle."""
    from adaptc.compiler.swap import swap_gates
    from adaptc.runtime import open_bundle

    swapped = swap_gates(open_bundle(bundle), file)
    for gates in swapped.manifest.gates.values():
        click.echo(f"{len(gates.layers)} gates, up to {gates.thresholds[-1][0]:.0%} of {gates.blocks} blocks skipped")
