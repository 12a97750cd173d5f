"""The command `adaptc report`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from adaptc.cli.options import BUNDLE, JSON, THREADS
from adaptc.cli.progress import shown_progress


@click.command("report")
@BUNDLE
@click.option(
    "--with",
    "added",
    type=click.Path(dir_okay=False, path_type=Path),
    multiple=True,
    help="JSON of `adaptc eval --sweep`, eval, bench or quality to show; may be repeated.",
)
@click.option(
    "--measure", is_flag=True, help="Measure the time of each layer here, and which blocks are skipped; some seconds."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the page there, and leave the bundle as it is.",
)
@THREADS
@JSON
def command(
    bundle: Path, added: tuple[Path, ...], measure: bool, output: Path | None, threads: int | None, as_json: bool
) -> None:
    """Write a bundle's report.html anew, with what was measured since."""
    from adaptc.report.added import read_added
    from adaptc.report.files import record_of, renewed, with_added
    from adaptc.report.page import report_html
    from adaptc.report.record import report_json
    from adaptc.runtime import open_bundle
    from adaptc.runtime.multimodal.profile import read_profile

    opened = open_bundle(bundle)
    record = record_of(opened)
    if not record.parts and importlib.util.find_spec("onnx_ir") is not None:
        from adaptc.report.parts import with_parts

        record = with_parts(opened, record)
    for path in added:
        record = with_added(record, *read_added(path))
    if measure:
        from adaptc.bench.layer_times import measured

        with shown_progress() as progress:
            record = measured(opened, record, threads, progress)
    if output is not None:
        page = report_html(opened.manifest, record, read_profile(opened))
        output.write_text(page, encoding="utf-8")
        click.echo(f"wrote {output}", err=True)
    else:
        click.echo(f"wrote {renewed(opened, record).path / 'report.html'}", err=True)
    if as_json:
        click.echo(report_json(opened.manifest, record), nl=False)
