"""The command `adaptc schema`."""

from __future__ import annotations

import click


@click.command("schema")
@click.option("--markdown", is_flag=True, help="Print the page docs/spec.md instead.")
def command(markdown: bool) -> None:
    """Print the JSON Schema of model.yaml."""
    from adaptc.spec.json_schema import SCHEMA, spec_markdown

    click.echo(spec_markdown() if markdown else SCHEMA.read_text(encoding="utf-8"), nl=False)
