"""The command `adaptc check`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from adaptc.cli.options import JSON, SETTINGS, SPEC
from adaptc.cli.output import print_columns


@click.command("check")
@SPEC
@SETTINGS
@click.option(
    "--explain", is_flag=True, help="Of a model of an unknown family: which parts are foreign, which file to write."
)
@JSON
@click.pass_context
def command(ctx: click.Context, spec_file: Path, settings: tuple[str, ...], explain: bool, as_json: bool) -> None:
    """Check a spec against its models and this machine.

    No weight is read. Exits with 1 if anything stands in the way.
    """
    from dataclasses import asdict

    from adaptc.compiler.preflight import preflight
    from adaptc.sources.quiet import quiet_transformers
    from adaptc.spec.reading import read_spec

    spec = read_spec(spec_file, settings)
    with quiet_transformers():  # the findings speak
        report = preflight(spec, spec_file.parent, explained=explain)
    if as_json:
        click.echo(
            json.dumps({"ok": report.ok, "findings": [asdict(finding) for finding in report.findings]}, indent=2)
        )
    else:
        print_columns([(finding.about, finding.level, finding.text) for finding in report.findings])
    if not report.ok:
        ctx.exit(1)
