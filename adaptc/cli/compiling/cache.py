"""The command `adaptc cache`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adaptc.cli.options import CACHE, open_cache

if TYPE_CHECKING:
    from adaptc.compiler.cache import Entry

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
    whole = [entry for entry in entries if entry.state == "whole"]
    kinds = Counter(entry.kind for entry in whole)
    for entry in entries:
        if entry.state == "unsealed" or (kinds[entry.kind] > LISTED and entry.state == "whole"):
            continue
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        left = "" if entry.state == "whole" else "  unfinished: its writer is gone, and the next write removes it"
        click.echo(f"{entry.kind:11}  {entry.key[:16]}  {entry.bytes / 1e6:9.1f} MB  used {used}{left}")
    for kind, count in kinds.items():
        if count > LISTED:
            size = sum(entry.bytes for entry in whole if entry.kind == kind)
            click.echo(f"{kind:11}  {f'{count} entries':16}  {size / 1e6:9.1f} MB")
    click.echo(f"{_size(whole)} in {len(whole)} entries in {cache.root}", err=True)
    unfinished = [entry for entry in entries if entry.state == "unfinished"]
    if unfinished:
        click.echo(
            f"{_size(unfinished)} of {len(unfinished)} writers who are gone; the next write removes it", err=True
        )
    unsealed = [entry for entry in entries if entry.state == "unsealed"]
    if unsealed:
        there = ", ".join(sorted({str(entry.path.parent) for entry in unsealed}))
        click.echo(
            f"{_size(unsealed)} in {len(unsealed)} folders or files without a seal in {there}: of an older adaptc, "
            "which this one does not read, or not of adaptc; nothing deletes them but you",
            err=True,
        )


def _size(entries: Sequence[Entry]) -> str:
    return f"{sum(entry.bytes for entry in entries) / 1e6:.1f} MB"


@command.command("clear")
@CACHE
@click.option("--kind", help="Delete only entries of this kind.")
def clear(cache_dir: Path | None, kind: str | None) -> None:
    """Delete entries; the next compile makes them again. Nothing else in the folder is deleted."""
    cache = open_cache(cache_dir)
    cleared = cache.clear(kind)
    click.echo(f"freed {cleared.bytes / 1e6:.1f} MB in {cache.root}", err=True)
    for entry in cleared.left:
        click.echo(f"{entry.path}: left: you may not delete it, or it has files that are not the cache's", err=True)
