"""The command `adaptc schema`."""

from __future__ import annotations

import json

import click


@click.command("schema")
@click.option("--markdown", is_flag=True, help="Print the page docs/spec.md instead.")
def command(markdown: bool) -> None:
    """Print the JSON Schema of model.yaml."""
    from adaptc.spec.json_schema import json_schema, spec_markdown

    click.echo(spec_markdown() if markdown else json.dumps(json_schema(), indent=2), nl=not markdown)
