"""The command `adaptc profile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adaptc.cli.options import BUNDLE, JSON, THREADS
from adaptc.cli.output import print_table
from adaptc.cli.progress import shown_progress

if TYPE_CHECKING:
    from adaptc.runtime.multimodal.profile import ModalProfile


DATA = click.option(
    "--data",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="An .npz file with the inputs by name, and 'labels'.",
)


@click.command("profile")
@BUNDLE
@DATA
@click.option(
    "--gate/--no-gate", default=True, show_default=True, help="Fit a modality gate, which chooses for each request."
)
@click.option("--largest-batch", type=click.IntRange(1, 1024), default=32, show_default=True)
@THREADS
@JSON
def command(bundle: Path, data: Path, gate: bool, largest_batch: int, threads: int | None, as_json: bool) -> None:
    """Measure every subset of modalities, into the bundle.

    Accuracy on labelled rows that training did not see, seconds on this machine; run it again where the bundle is used.
    """
    from adaptc.bench.profiling import profile_bundle

    with shown_progress() as progress:
        profile = profile_bundle(
            bundle, data, threads=threads, largest_batch=largest_batch, gate=gate, progress=progress
        )
    if as_json:
        click.echo(profile.to_json(), nl=False)
    else:
        _print_profile(profile)


def _print_profile(profile: ModalProfile) -> None:
    from rich.table import Table

    last = profile.batches[-1]
    table = Table(caption=f"{profile.rows} rows; {profile.cpu}, {profile.threads} threads")
    for title in ("subset", "accuracy", "95 %", "ms, batch 1", f"ms, batch {last}"):
        table.add_column(title, justify="left" if title == "subset" else "right", no_wrap=True)
    for each in profile.subsets:
        interval = f"{each.low:.3f} to {each.high:.3f}"
        first, most = (f"{each.seconds[index] * 1e3:.2f}" for index in (0, -1))
        table.add_row("+".join(each.modalities), f"{each.accuracy:.3f}", interval, first, most)
    print_table(table, width=100)
    gate = profile.gate
    if gate is None:
        click.echo("no gate: no subset is cheap enough to begin with")
        return
    click.echo(f"gate: reads {'+'.join(gate.subsets[0])}; calibration error {gate.error:.3f} on held-out rows")
    for index, level in enumerate(gate.levels):
        shares = {"+".join(s): f"{share:.0%}" for s, share in zip(gate.subsets, level.shares, strict=True) if share}
        shown = ", ".join(f"{name} {share}" for name, share in shares.items())
        click.echo(f"gate@{index}: accuracy {level.accuracy:.3f} ({level.low:.3f} to {level.high:.3f}); {shown}")
