"""`--set KEY.KEY=VALUE`: one value of a document changed for one run."""

from __future__ import annotations

from typing import Any

from adaptc.errors import SpecError
from adaptc.spec.positions import Document, Path, read_yaml


def apply_set(document: Document, override: str) -> None:
    """Apply one `--set a.b.0.c=value`; mappings that are missing on the way are added.

    Args:
        document: Changed in place; faults are added to it.
        override: Keys and list indices with dots between, `=`, and a YAML value.

    Raises:
        SpecError: it has another form, or leads through a value without keys.
    """
    keys, equals, text = override.partition("=")
    names = keys.strip().split(".")
    if not equals or not all(names):
        raise SpecError(f"--set {override}: expected KEY.KEY=VALUE, e.g. target.weights=int8")
    try:
        value = read_yaml(text, "value").data if text.strip() else None
    except SpecError as error:
        raise SpecError(f"--set {override}: {str(error).partition(': ')[2]}") from error
    if not isinstance(document.data, dict):
        document.data = {}
    at: Any = document.data
    path: Path = ()
    for depth, name in enumerate(names):
        key = _key(at, name, path, override)
        path = (*path, key)
        if depth == len(names) - 1:
            at[key] = value
            break
        below = at.get(key) if isinstance(at, dict) else at[key]
        if below is None or below == names[depth + 1]:  # nothing there yet, or a pass without options
            below = {} if below is None else {below: {}}
            document.set_by[path] = override
            at[key] = below
        at = below
    for old in [old for old in (*document.lines, *document.set_by) if old[: len(path)] == path]:
        document.lines.pop(old, None)
        document.set_by.pop(old, None)
    document.faults = [fault for fault in document.faults if fault.path[: len(path)] != path]
    document.set_by[path] = override


def _key(at: Any, name: str, path: Path, override: str) -> str | int:
    where = ".".join(map(str, path))
    if isinstance(at, dict):
        return name
    if not isinstance(at, list):
        raise SpecError(f"--set {override}: {where} is {at!r}, which has no keys")
    if not name.isdecimal() or int(name) >= len(at):
        there = f"0 to {len(at) - 1}" if at else "none"
        raise SpecError(f"--set {override}: {where} is a list; {name!r} is not one of its entries ({there})")
    return int(name)
