"""Pictures of strategies and replays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptc.runtime.multimodal.profile import ModalProfile
from adaptc.runtime.multimodal.strategy import Strategies

COLOURS = {"whole": "#9aa3b5", "table": "#3d7dca", "gate": "#d1633c", "auto": "#3a9a6b"}
KINDS = {"saturated": "all at once", "poisson": "Poisson", "bursty": "bursty"}


def plot_strategies(profile: ModalProfile, strategies: Strategies, into: Path) -> None:
    """Draw the Pareto lists of several job sizes, and the subsets with their intervals, as a PNG."""
    figure, (left, right) = _figure()
    batch = profile.batches[-1]
    for place, each in enumerate(profile.subsets):
        ms = each.seconds[-1] / batch * 1e3
        spread = [[each.accuracy - each.low], [each.high - each.accuracy]]
        left.errorbar(ms, each.accuracy, yerr=spread, fmt="o", color=COLOURS["table"], capsize=3)
        # Above and below in turn, and short: neighbours would hide each other.
        label, offset = f"{place + 1}", (5, 4 if place % 2 else -11)
        left.annotate(label, (ms, each.accuracy), offset, textcoords="offset points", fontsize=9)
    names = [f"{place + 1} {'+'.join(each.modalities)}" for place, each in enumerate(profile.subsets)]
    left.text(0.98, 0.02, "\n".join(names), transform=left.transAxes, ha="right", va="bottom", fontsize=8)
    gates = [option for option in strategies.options if option.level is not None]
    if gates:
        costs = [option.seconds[-1] / batch * 1e3 for option in gates]
        left.plot(costs, [option.accuracy for option in gates], "D-", color=COLOURS["gate"], label="gate")
        left.legend(frameon=False)
    left.set(xscale="log", xlabel=f"ms a request, batch {batch}", ylabel="accuracy", title="subsets, 95 % intervals")
    size = strategies.most
    while size >= 1:
        front = strategies.front(size)
        right.step([p.seconds / size * 1e3 for p in front], [p.accuracy for p in front], where="post", label=str(size))
        size //= 4
    right.set(xscale="log", xlabel="ms a request", ylabel="expected accuracy", title="best ways, by size of the job")
    right.legend(frameon=False, title="requests")
    _save(figure, into)


def plot_replay(figures: Mapping[str, Any], into: Path) -> None:
    """Draw throughput and completion times of each policy, as a PNG."""
    figure, (left, right) = _figure()
    names = list(figures["saturated"])
    for place, name in enumerate(names):
        each = figures["saturated"][name]
        left.bar(place, each["requests_per_second"], color=COLOURS[name], width=0.6)
        label = f"{each['requests_per_second']:,.0f}/s\naccuracy {each['accuracy']:.3f}"
        left.annotate(label, (place, each["requests_per_second"]), (0, 3), textcoords="offset points", ha="center")
    left.set_xticks(range(len(names)), names)
    left.set(ylabel="requests a second", title="all jobs at once")
    left.margins(y=0.2)
    kinds = ("poisson", "bursty")
    for place, name in enumerate(names):
        times = [figures[kind][name]["mean_completion_seconds"] for kind in kinds]
        bars = right.bar([x + 0.22 * place for x in range(2)], times, width=0.2, color=COLOURS[name], label=name)
        right.bar_label(
            bars, labels=[f"{figures[kind][name]['deadlines_missed']:.0f} late" for kind in kinds], fontsize=8
        )
    right.set_xticks([x + 0.11 * (len(names) - 1) for x in range(2)], [KINDS[kind] for kind in kinds])
    right.set(yscale="log", ylabel="mean seconds to completion", title="at the overload point")
    right.legend(frameon=False)
    _save(figure, into)


def _figure() -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, into: Path) -> None:
    figure.savefig(into, dpi=130)
