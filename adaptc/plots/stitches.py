"""Stitches on a plane of cost and quality, with the two models they are made of and the line between these."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adaptc.training.stitches.search_result import SearchResult


def draw(result: SearchResult, path: Path) -> None:
    """Write a picture of a search.

    Args:
        result: What was measured.
        path: A .png or .svg file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    donors = sorted(result.donors, key=lambda donor: donor.bytes)
    most = result.most_bytes
    axes.plot(
        [100 * donor.bytes / most for donor in donors],
        [donor.kl for donor in donors],
        color="0.5",
        linestyle="--",
        marker="s",
        label="the models, and the line between them",
        zorder=2,
    )
    below = [each for each in result.stitches if result.above(each) < 0]
    above = [each for each in result.stitches if result.above(each) >= 0]
    for group, colour, label in ((below, "tab:green", "below the line"), (above, "tab:red", "above it")):
        x, y = [100 * each.bytes / most for each in group], [each.kl for each in group]
        axes.scatter(x, y, color=colour, label=f"stitches {label}: {len(group)}", zorder=3)
    for each in result.stitches:
        axes.annotate(
            f"{each.place.first} {each.place.cut} → {each.place.second} {each.place.entry}",
            (100 * each.bytes / most, each.kl),
            textcoords="offset points",
            xytext=(5, 4),
            fontsize=8,
        )
    for donor in donors:
        axes.annotate(
            donor.name,
            (100 * donor.bytes / most, donor.kl),
            textcoords="offset points",
            xytext=(-4, -13),
            fontsize=9,
            ha="right" if donor.bytes == most else "left",
        )
    axes.set_xlabel(f"bytes of weights read for a token, % of {donors[-1].name}")
    axes.set_ylabel(f"KL to {donors[-1].name}, nats a token of {result.read} (lower is better)")
    axes.set_title("layers that run below → first layer that runs above")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(path)
