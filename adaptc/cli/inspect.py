"""Commands that look and change nothing: check, passes, doctor, schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptc.cli.build import SETTING

if TYPE_CHECKING:
    from adaptc.passes import Pass

_STYLES = {"ok": "green", "warn": "yellow", "error": "red", "absent": "dim"}
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("check")
@click.argument("spec_file", metavar="SPEC", type=click.Path(path_type=Path))
@SETTING
@AS_JSON
@click.pass_context
def check_command(ctx: click.Context, spec_file: Path, settings: tuple[str, ...], as_json: bool) -> None:
    """Check a spec against its models and this machine.

    No weight is read. Exits with 1 if anything stands in the way.
    """
    from dataclasses import asdict

    from adaptc.checks.check import check
    from adaptc.spec.schema import read_spec

    _quiet()
    report = check(read_spec(spec_file, settings), spec_file.parent)
    if as_json:
        click.echo(json.dumps({"ok": report.ok, "findings": [asdict(found) for found in report.findings]}, indent=2))
    else:
        _table([(found.about, found.level, found.text) for found in report.findings])
    if not report.ok:
        ctx.exit(1)


@click.command("passes")
@click.argument("name", required=False)
def passes_command(name: str | None) -> None:
    """List the passes, or explain one."""
    import inspect

    from adaptc.errors import SpecError
    from adaptc.spec.schema import known_passes, outside_passes, pass_class

    if name is not None:
        found = pass_class(name)
        if isinstance(found, str):
            raise SpecError(found)
        click.echo(f"{name}\n\n{inspect.getdoc(found) or 'It has no description.'}\n\nOptions:")
        click.echo("\n".join(_options(found)) or "  none")
        return
    names = [*known_passes(), *(each for each in outside_passes() if each not in known_passes())]
    width = max(map(len, names), default=0)
    for each in names:
        found = pass_class(each)
        text = found if isinstance(found, str) else (inspect.getdoc(found) or "").partition("\n")[0]
        click.echo(f"{each:{width}}  {text}")


def _options(kind: type[Pass]) -> Iterator[str]:
    import dataclasses

    for field in dataclasses.fields(kind):
        default = "required"
        if field.default is not dataclasses.MISSING:
            default = f"default {field.default!r}"
        elif field.default_factory is not dataclasses.MISSING:
            default = f"default {field.default_factory()!r}"
        yield f"  {field.name}: {field.type}  ({default})"


@click.command("doctor")
@AS_JSON
def doctor_command(as_json: bool) -> None:
    """Say what this machine has, and what it lacks."""
    from adaptc.checks.doctor import diagnose

    found = diagnose()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    _table(list(_machine(found)))
    rows = []
    for package in found["packages"]:
        mark = "ok" if package["ok"] else "error" if package["extra"] is None else "absent"
        wanted = f"{package['wanted']} or newer" if package["wanted"] else "any"
        note = "" if package["ok"] else f"{wanted}: {package['install']}"
        name = f"{package['name']} {package['found'] or ''}".strip()
        rows.append((package["extra"] or "adaptc", mark, name, note))
    _table(rows)


def _machine(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    cpu, memory, gpu, engines = found["cpu"], found["memory"], found["gpu"], found["engines"]
    yield "adaptc", f"{found['adaptc'] or 'not installed'}, Python {found['python']}, {found['system']}"
    yield "cpu", f"{cpu['name'] or 'unknown'}, {cpu['cores']} cores, {cpu['threads']} threads"
    yield "cpu kernels", ", ".join(cpu["flags"]) or "none that matter"
    yield "memory", f"{memory['bytes'] / 1e9:.1f} GB, {memory['available_bytes'] / 1e9:.1f} free"
    driver = f"NVIDIA driver {gpu['driver']}" if gpu["driver"] else "no NVIDIA driver"
    yield "gpu", f"{driver}, libcuda {'loads' if gpu['libcuda'] else 'does not load'}"
    for name, engine in engines.items():
        text = engine["version"] or "not installed"
        more = ", ".join(engine.get("providers", ())) or engine.get("trouble", "")
        yield f"engine {name}", f"{text}: {more}" if more else text
    yield "cache", f"{found['cache']['bytes'] / 1e6:,.0f} MB in {found['cache']['path']}"


@click.command("schema")
@click.option("--markdown", is_flag=True, help="Print docs/spec.md instead.")
def schema_command(markdown: bool) -> None:
    """Print the JSON Schema of model.yaml."""
    from adaptc.spec.json_schema import json_schema, spec_markdown

    click.echo(spec_markdown() if markdown else json.dumps(json_schema(), indent=2), nl=not markdown)


def _table(rows: Sequence[Sequence[str]]) -> None:
    """Columns on stdout: wrapped and coloured on a terminal, one plain line a row elsewhere."""
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


def _quiet() -> None:
    """Let the findings speak: transformers would say some of them its own way."""
    from transformers.utils import logging

    logging.set_verbosity_error()
