"""What the page says of a router: what its threshold costs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from adaptc.report.drawing.charts import Axis, curves
from adaptc.report.drawing.figures import table
from adaptc.report.drawing.units import percent, three
from adaptc.report.gates import CurveView
from adaptc.runtime.bundle.manifest import Manifest


def router_views(manifest: Manifest) -> Iterator[CurveView]:
    """The router's threshold over what requests cost on average, which is what a budget moves along."""
    router = manifest.switch.router if manifest.switch is not None else None
    if router is None:
        return
    levels = [(100 * cost, level) for cost, level in reversed(router.levels) if math.isfinite(level)]
    if len(levels) < 2:
        return
    title = "What the router's threshold costs"
    x = Axis.over("mean cost of a request, % of the dearest route", [cost for cost, _ in levels])
    y = Axis.over("threshold, nats a token", [level for _, level in levels])
    rows = [(percent(cost / 100), three(level)) for cost, level in levels]
    bound = ", ".join(f"{key} {value}" for key, value in router.bound.items())
    set_at = f"{three(router.threshold)} nats a token" if math.isfinite(router.threshold) else "a single route"
    note = f"Set to {set_at}" + (f", calibrated to: {bound}." if bound else ".")
    yield CurveView(
        title, curves(title, x, y, {"router": levels}), ("router",), table((x.name, y.name), rows, words=0), note
    )
