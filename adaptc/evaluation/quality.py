"""A table of quality: what a bundle can do by each of its routes and budgets, side by side with its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adaptc.evaluation.figures import Figure, cell, record_of
from adaptc.evaluation.routes import has_router, route_bytes, routes_of
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.model.plan import check_budget_fits


@dataclass(frozen=True, slots=True)
class Way:
    """A route and a budget to measure.

    Attributes:
        name: Of its row: the route, "router" for the router's choices, and the budget; "" for a bundle as it is.
        options: What requests ask for.
        bytes_per_token: Bytes of weights that a token reads when no block is skipped; None where a router picks.
    """

    name: str
    options: RequestOptions
    bytes_per_token: float | None


def ways_of(bundle: Bundle, routes: Sequence[str] = (), budgets: Sequence[float] = ()) -> list[Way]:
    """What is measured of a bundle: each route under each budget, as they are given.

    Args:
        bundle: An opened bundle.
        routes: Routes of a stitched bundle; by default all, and what its router picks.
        budgets: From 0 to 1; by default the bundle's own.

    Raises:
        RequestError: there is no such route, or neither gates nor a router that budgets are for.
    """
    chosen = routes_of(bundle, routes)
    for given in budgets:
        check_budget_fits(bundle, given, routes=routes or None)
    named: list[str | None] = [*chosen] or [None]
    if chosen and not routes and has_router(bundle):
        named.append(None)
    asked: list[float | None] = [*budgets] or [None]
    ways = []
    for route in named:
        for budget in asked:
            parts = (route or ("router" if chosen else ""), "" if budget is None else f"budget {budget:g}")
            ways.append(
                Way(" ".join(filter(None, parts)), RequestOptions(budget=budget, route=route), _bytes_of(bundle, route))
            )
    return ways


def _bytes_of(bundle: Bundle, route: str | None) -> float | None:
    """Bytes that a token reads by a route; None where a router picks one."""
    if route is not None:
        return route_bytes(bundle)[route]
    return None if route_bytes(bundle) else bundle.manifest.bytes_per_token


@dataclass(slots=True)
class QualityRow:
    """What was measured of one way, filled as it is.

    Attributes:
        bytes_per_token: See `Way`.
        figures: By column.
        other: What else is told in JSON.
    """

    bytes_per_token: float | None
    figures: dict[str, Figure] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)


def record(rows: Mapping[str, QualityRow]) -> dict[str, dict[str, Any]]:
    """Rows for JSON."""
    return {
        name: ({} if row.bytes_per_token is None else {"bytes_per_token": row.bytes_per_token})
        | row.other
        | {column: record_of(figure) for column, figure in row.figures.items()}
        for name, row in rows.items()
    }


def table(rows: Mapping[str, QualityRow]) -> str:
    """The figures in Markdown, a row for each way; figures with their intervals, and how far from the first row's."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row.figures))
    others = [name for name in ("perplexity", "ffn_skipped") if any(name in row.other for row in rows.values())]
    most = max((row.bytes_per_token or 0 for row in rows.values()), default=0)
    first = next(iter(rows.values()), None)
    lines = [
        f"| | {' | '.join(('bytes a token', *others, *columns))} |",
        f"|{'---|' * (len(columns) + len(others) + 2)}",
    ]
    for name, row in rows.items():
        cost = row.bytes_per_token
        cells = [f"{cost / 1e6:.0f} MB, {cost / most:.1%}" if cost else ""]
        for other in others:
            value = row.other.get(other)
            cells.append("" if value is None else f"{value:.1%}" if other == "ffn_skipped" else f"{value:.3f}")
        for column in columns:
            figure = row.figures.get(column)
            base = None if first is None or row is first else first.figures.get(column)
            cells.append("" if figure is None else cell(figure, base))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
