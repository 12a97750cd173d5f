"""The command `adaptc cache`."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import click

from adaptc.cli.options import CACHE, open_cache

LISTED = 20
"""Entries of one kind that are listed; more of them, such as the codes of every matrix, are one line."""


@click.group("cache")
def command() -> None:
    """List or clear what compiling keeps."""


@command.command("ls")
@CACHE
@click.option("--json", "as_json", is_flag=True)
def list_entries(cache_dir: Path | None, as_json: bool) -> None:
    """List entries, the longest unused first."""
    import json
    from dataclasses import asdict

    cache = open_cache(cache_dir)
    entries = list(cache.entries())
    if as_json:
        click.echo(json.dumps([{**asdict(entry), "path": str(entry.path)} for entry in entries], indent=2))
        return
    kinds = Counter(entry.kind for entry in entries if entry.whole)
    for entry in entries:
        if kinds[entry.kind] > LISTED and entry.whole:
            continue
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        left = "" if entry.whole else "  unfinished: its writer is gone, and the next write removes it"
        click.echo(f"{entry.kind:11}  {entry.key[:16]}  {entry.bytes / 1e6:9.1f} MB  used {used}{left}")
    for kind, count in kinds.items():
        if count > LISTED:
            size = sum(entry.bytes for entry in entries if entry.kind == kind)
            click.echo(f"{kind:11}  {f'{count} entries':16}  {size / 1e6:9.1f} MB")
    click.echo(f"{sum(e.bytes for e in entries) / 1e6:.1f} MB in {len(entries)} entries in {cache.root}", err=True)


@command.command("clear")
@CACHE
@click.option("--kind", help="Delete only entries of this kind.")
def clear(cache_dir: Path | None, kind: str | None) -> None:
    """Delete entries; the next compile makes them again."""
    cache = open_cache(cache_dir)
    click.echo(f"freed {cache.clear(kind) / 1e6:.1f} MB in {cache.root}", err=True)
