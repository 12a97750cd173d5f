"""What a router is worth, as a picture: loss against cost for routes, router, coin and oracle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptc.evaluation.routing import Point, Routing

INK, FAINT = "#1d2433", "#d9dee8"
ROUTER, COIN, ORACLE = "#1f5fbf", "#6b7487", "#3f9b6c"


def draw(routing: Routing, title: str, path: Path) -> None:
    """Write a picture of routes and of ways to choose among them.

    Args:
        routing: What was measured.
        title: Title of the picture.
        path: A .png or .svg file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for points, colour, line, label in (
        (routing.coin, COIN, "--", "coin: routes drawn blindly"),
        (routing.router, ROUTER, "-", "router, by its threshold"),
        (routing.oracle, ORACLE, ":", "oracle: knows what each route loses"),
    ):
        x, y = _plane(points)
        axes.plot(x, y, color=colour, linestyle=line, linewidth=1.8, label=label, zorder=2)
    _, shown = _plane([*routing.router, *routing.coin, *routing.oracle])
    top = 1.15 * max(*shown, 1e-3)
    for name, point in routing.routes.items():
        inside = point.loss <= top  # one that loses far more would press the rest flat
        axes.errorbar(
            100 * point.cost,
            min(point.loss, top),
            yerr=point.error if inside else 0,
            color=INK,
            marker="s" if inside else "^",
            markersize=6,
            capsize=2,
            zorder=3,
        )
        axes.annotate(
            name if inside else f"{name}: {point.loss:.2f}",
            (100 * point.cost, min(point.loss, top)),
            textcoords="offset points",
            xytext=(-7, -14) if point.cost > 0.9 else (7, 6) if inside else (7, -12),
            ha="right" if point.cost > 0.9 else "left",
            fontsize=9,
            color=INK,
        )
    chosen = routing.calibrated
    axes.errorbar(
        100 * chosen.cost,
        chosen.loss,
        yerr=chosen.error,
        color=ROUTER,
        marker="o",
        markersize=9,
        capsize=3,
        zorder=4,
        linestyle="none",
        label=f"as calibrated: {chosen.kept:.1%} of a token's likelihood at {chosen.cost:.0%} of the bytes",
    )
    dearest = max(routing.routes, key=lambda name: routing.routes[name].cost)
    axes.set_xlabel(f"bytes of weights read for a token, % of {dearest}")
    axes.set_ylabel(f"lost against {dearest}, nats a token of answers (lower is better)")
    axes.set_title(
        f"{title}: {routing.prompts} answers of {routing.tokens} tokens", loc="left", fontsize=10.5, color=INK
    )
    axes.set_ylim(min(0.0, *shown) - 0.06 * top, top * 1.08)
    axes.grid(color=FAINT, zorder=0)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8.5, framealpha=0.9, edgecolor=FAINT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path)


def _plane(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    ordered = sorted(points, key=lambda point: point.cost)
    return [100 * each.cost for each in ordered], [each.loss for each in ordered]
