"""The command `adaptc check`."""

from __future__ import annotations

import json
from typing import Any

import click

from adaptc.cli.model_argument import MODEL, model_options, read_model
from adaptc.cli.options import JSON
from adaptc.cli.output import print_columns


@click.command("check")
@MODEL
@model_options
@click.option(
    "--explain", is_flag=True, help="Of a model of an unknown family: which parts are foreign, which file to write."
)
@JSON
@click.pass_context
def command(
    ctx: click.Context, /, model: str, settings: tuple[str, ...], explain: bool, as_json: bool, **options: Any
) -> None:
    """Check a spec against its models and this machine.

    MODEL is a model.yaml, or a model alone as `adaptc compile` takes it. No weight is read. Exits with 1 if anything
    stands in the way.
    """
    from dataclasses import asdict

    from adaptc.compiler.preflight import preflight
    from adaptc.sources.quiet import quiet_transformers

    given = read_model(model, settings, **options)
    with quiet_transformers():  # the findings speak
        report = preflight(given.spec, given.base, explained=explain)
    if as_json:
        click.echo(
            json.dumps({"ok": report.ok, "findings": [asdict(finding) for finding in report.findings]}, indent=2)
        )
    else:
        print_columns([(finding.about, finding.level, finding.text) for finding in report.findings])
    if not report.ok:
        ctx.exit(1)
