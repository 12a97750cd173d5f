"""A sweep as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def columns_and_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A sweep as the heads of columns, and rows of cells."""
    names = list(result["policies"])
    speed = {row["share"]: row for row in result.get("speed", {}).get("rows", [])}
    heads = ["skipped", *names, *(["decode\ntok/s", "vs dense", "ceiling"] if speed else [])]
    by_policy = {name: {row["share"]: row for row in rows} for name, rows in result["policies"].items()}
    rows = []
    for share in sorted({share for each in by_policy.values() for share in each}):
        cells = [f"{share:.0%}"]
        for name in names:
            row = by_policy[name].get(share)
            off = row is not None and abs(row["ffn_skipped"] - share) >= 0.01
            cells.append("" if row is None else f"{_ratio(row['ratio'])}{_at(row) if off else ''}")
        if speed:
            row = speed.get(share)
            keys = ("tokens_per_second", "ratio", "ceiling")
            cells += [f"{row[key]:.3g}" if row is not None else "" for key in keys]
        rows.append(cells)
    return heads, rows


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.0f}" if value < 1e4 else f"{value:.0e}"


def _at(row: Mapping[str, Any]) -> str:
    """Says the real share, where it is not the asked one."""
    return f" @{row['ffn_skipped']:.0%}"
