"""The command `adaptc doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from adaptc.cli.options import JSON
from adaptc.cli.output import print_columns


@click.command("doctor")
@JSON
def command(as_json: bool) -> None:
    """Say what this machine has, and what it lacks."""
    from adaptc.checks.doctor import diagnose
    from adaptc.compiler.cache import Cache

    cache = Cache.default()
    diagnosis = diagnose() | {
        "cache": {"path": str(cache.root), "bytes": sum(entry.bytes for entry in cache.entries())}
    }
    if as_json:
        click.echo(json.dumps(diagnosis, indent=2))
        return
    print_columns(list(_machine(diagnosis)))
    rows = []
    for package in diagnosis["packages"]:
        mark = "ok" if package["ok"] else "error" if package["extra"] is None else "absent"
        wanted = f"{package['wanted']} or newer" if package["wanted"] else "any"
        note = "" if package["ok"] else f"{wanted}: {package['install']}"
        name = f"{package['name']} {package['found'] or ''}".strip()
        rows.append((package["extra"] or "adaptc", mark, name, note))
    print_columns(rows)


def _machine(diagnosis: dict[str, Any]) -> Iterator[tuple[str, str]]:
    cpu, memory, gpu, engines = diagnosis["cpu"], diagnosis["memory"], diagnosis["gpu"], diagnosis["engines"]
    yield "adaptc", f"{diagnosis['adaptc'] or 'not installed'}, Python {diagnosis['python']}, {diagnosis['system']}"
    yield "cpu", f"{cpu['name'] or 'unknown'}, {cpu['cores']} cores, {cpu['threads']} threads"
    yield "cpu kernels", ", ".join(cpu["flags"]) or "none that matter"
    yield "memory", f"{memory['bytes'] / 1e9:.1f} GB, {memory['available_bytes'] / 1e9:.1f} free"
    driver = f"NVIDIA driver {gpu['driver']}" if gpu["driver"] else "no NVIDIA driver"
    yield "gpu", f"{driver}, libcuda {'loads' if gpu['libcuda'] else 'does not load'}"
    for index, each in enumerate(gpu["gpus"]):
        yield f"cuda:{index}", f"{each['name']}, compute capability {each['compute_capability']}"
    for lack in gpu["lacks"] or ("all is there that bundles need",):
        yield "cuda", lack
    for name, engine in engines.items():
        text = engine["version"] or "not installed"
        more = ", ".join(engine.get("providers", ())) or engine.get("trouble", "")
        yield f"engine {name}", f"{text}: {more}" if more else text
    yield "cache", f"{diagnosis['cache']['bytes'] / 1e6:,.0f} MB in {diagnosis['cache']['path']}"
