"""A picture of servers under a load: latencies over time, the queue, and distributions with their targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#3d7dca", "#d1633c", "#4f9d69", "#8a63b8", "#9aa3b5", "#b08a2e")
INK = "#444a57"

_STEPS = 400  # points of a line over time


def plot_load(report: Mapping[str, Any], into: Path) -> None:
    """Draw a report as a PNG; of several runs over time, the first is drawn, and all in the distributions.

    Args:
        report: As `load_report` returns it.
        into: The file.
    """
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    axes = figure.subplots(2, 2, gridspec_kw={"width_ratios": (1.6, 1)})
    for each in axes.flat:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.25, linewidth=0.6)
    targets = report["settings"]["targets"]
    named = dict(zip(report["exchanges"], COLOURS * (1 + len(report["exchanges"]) // len(COLOURS)), strict=False))
    for name, colour in named.items():
        lines = report["exchanges"][name]
        first = [line for line in lines if line["run"] == 0]
        _latencies(axes[0, 0], first, name, colour)
        _queue(axes[1, 0], first, name, colour)
        _distribution(axes[0, 1], [_ttft(line) for line in lines if "error" not in line], name, colour)
        _distribution(axes[1, 1], [t for line in lines if (t := _tpot(line)) is not None], name, colour)
    _arrivals(axes[1, 0], next(iter(report["exchanges"].values())), report["settings"]["seconds"])
    _target(axes[0, 1], targets.get("ttft"))
    _target(axes[1, 1], targets.get("tpot"))
    axes[0, 0].set(ylabel="seconds", title="first token ●, whole answer ○, error ×; by when it was due", yscale="log")
    axes[1, 0].set(xlabel="seconds since the start", ylabel="requests under way", title="queue, and arrivals (grey)")
    axes[0, 1].set(xlabel="ms", ylabel="share of requests", title="time to the first token")
    axes[1, 1].set(xlabel="ms", ylabel="share of requests", title="time for each further token")
    axes[0, 0].sharex(axes[1, 0])
    if axes[0, 1].get_legend_handles_labels()[0]:
        axes[0, 1].legend(frameon=False, loc="lower right")
    figure.savefig(into, dpi=120, format="png")


def _latencies(axis: Axes, lines: Sequence[Mapping[str, Any]], name: str, colour: str) -> None:
    done = [line for line in lines if "error" not in line]
    due = [line["due"] for line in done]
    axis.plot(due, [_ttft(line) for line in done], "o", color=colour, markersize=3.5, label=name)
    whole = [line["chunk_times"][-1] - line["due"] for line in done]
    axis.plot(due, whole, "o", color=colour, markersize=3.5, fillstyle="none", alpha=0.6)
    failed = [line for line in lines if "error" in line]
    axis.plot(
        [line["due"] for line in failed],
        [max(1e-3, line["ended"] - line["due"]) for line in failed],
        "x",
        color=colour,
        markersize=6,
    )


def _queue(axis: Axes, lines: Sequence[Mapping[str, Any]], name: str, colour: str) -> None:
    """Requests that were due and not yet ended, over time."""
    if not lines:
        return
    end = max(line["ended"] for line in lines)
    at = np.linspace(0, end, _STEPS)
    due, ended = (np.sort([line[key] for line in lines]) for key in ("due", "ended"))
    axis.step(at, np.searchsorted(due, at, "right") - np.searchsorted(ended, at, "right"), color=colour, label=name)


def _arrivals(axis: Axes, lines: Sequence[Mapping[str, Any]], seconds: float | None) -> None:
    """How many requests came a second, on an axis of their own."""
    due = [line["due"] for line in lines if line["run"] == 0]
    if not due:
        return
    end = max(seconds or 0.0, *due, 1e-3)
    counts, edges = np.histogram(due, bins=min(60, max(1, round(end))), range=(0, end))
    beside = axis.twinx()
    beside.bar(edges[:-1], counts / np.diff(edges), np.diff(edges), align="edge", color="#9aa3b5", alpha=0.3)
    beside.spines[["top"]].set_visible(False)
    beside.set_ylabel("arrivals a second", color=INK)
    beside.set_ylim(0, 2.5 * max(1e-9, float((counts / np.diff(edges)).max())))


def _distribution(axis: Axes, seconds: Sequence[float], name: str, colour: str) -> None:
    if not seconds:
        return
    ms = np.sort(seconds) * 1e3
    axis.step(ms, np.arange(1, len(ms) + 1) / len(ms), where="post", color=colour, label=name)
    axis.axhline(0.95, color="#9aa3b5", linewidth=0.7, linestyle=":")
    axis.set_ylim(0, 1.02)


def _target(axis: Axes, seconds: float | None) -> None:
    if seconds is not None:
        axis.axvline(seconds * 1e3, color=INK, linestyle="--", linewidth=1)
        axis.annotate(
            f"target {seconds * 1e3:g} ms",
            (seconds * 1e3, 0.03),
            (4, 0),
            textcoords="offset points",
            color=INK,
            fontsize=9,
        )


def _ttft(line: Mapping[str, Any]) -> float:
    return float(line["chunk_times"][0] - line["due"])


def _tpot(line: Mapping[str, Any]) -> float | None:
    tpot: float | None = line.get("tpot")
    return tpot
