"""Pictures of a bundle with gates: quality against speed over budgets, and which blocks ran for which token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptc.errors import RequestError
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.budget import Skips

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "learned": "#1f5fbf",
    "cosine": "#d1781f",
    "static": "#3f9b6c",
    "random": "#9aa3b5",
    "random+": "#6b7487",
    "layers": "#b5485d",
}
NAMES = {
    "learned": "learned gates",
    "cosine": "cosine (FFN-SkipLLM)",
    "static": "static masks",
    "random": "random",
    "random+": "random, learned cheap paths",
    "layers": "whole layers",
}
INK, FAINT = "#1d2433", "#d9dee8"
WORST = 2.0
"""Ratios of perplexity above this are not drawn: nobody would run them."""

MOST_TOKENS = 96
"""Tokens of a skip map: more would be too small to read."""


def curves(sweep: Mapping[str, Any], title: str) -> Figure:
    """Perplexity over the share skipped for every policy; and, if speeds are there, against speed.

    Args:
        sweep: What `adaptc eval --sweep --json` prints.
        title: Title of the picture.
    """
    speed = sweep.get("speed")
    figure = _figure(11 if speed else 6.4, 4.6)
    left, *right = figure.subplots(1, 2 if speed else 1, squeeze=False)[0]
    for name, rows in sweep["policies"].items():
        _curve(left, name, rows)
    left.set_xlabel("feed-forward blocks skipped, %")
    left.set_ylabel("perplexity ÷ dense")
    left.set_ylim(0.97, WORST)
    left.set_xlim(0, 52)
    left.legend(frameon=False, fontsize=8.5, loc="best")
    left.set_title("quality by policy", loc="left", fontsize=10.5, color=INK)
    if speed:
        _speeds(right[0], sweep)
    figure.suptitle(title, x=0.012, ha="left", fontsize=12.5, fontweight="bold", color=INK)
    figure.text(0.012, 0.01, _caption(sweep), fontsize=7.5, color="#5a6478")
    return figure


def _curve(axes: Axes, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    x = [0.0, *(100 * row["ffn_skipped"] for row in rows)]
    y = np.array([1.0, *(row["ratio"] for row in rows)])
    strong = name == "learned"
    axes.plot(
        x,
        np.where(y <= WORST * 1.2, y, np.nan),
        color=COLOURS.get(name, INK),
        label=NAMES.get(name, name),
        marker="o",
        markersize=4.5 if strong else 3,
        linewidth=2.4 if strong else 1.3,
        zorder=3 if strong else 2,
    )


def _speeds(axes: Axes, sweep: Mapping[str, Any]) -> None:
    """Speed and ceiling over quality, a point for each budget."""
    speed = sweep["speed"]
    ratios = {0.0: 1.0} | {row["share"]: row["ratio"] for row in sweep["policies"].get("learned", [])}
    rows = [row for row in speed["rows"] if row["share"] in ratios] or speed["rows"]
    by_share = not sweep["policies"].get("learned")
    x = [100 * row["share"] if by_share else ratios[row["share"]] for row in rows]
    dashed: Mapping[str, Any] = {"color": "#5a6478", "linestyle": (0, (4, 3)), "linewidth": 1.3}
    axes.plot(x, [r["ceiling"] for r in rows], label="ceiling set by bytes read", **dashed)
    solid: Mapping[str, Any] = {"color": COLOURS["learned"], "marker": "o", "markersize": 5, "linewidth": 2.4}
    axes.plot(x, [r["ratio"] for r in rows], label="measured; labels: blocks skipped", **solid)
    axes.axhline(1, color=FAINT, linewidth=1, zorder=1)
    axes.legend(frameon=False, fontsize=8.5, loc="upper left")
    for place, row in enumerate(rows):
        if place % 2 == 0:
            label = f"{row['ffn_skipped']:.0%}"
            axes.annotate(label, (x[place], row["ratio"]), (0, -13), **_NOTE, ha="center", color=INK)
    axes.set_xlabel("feed-forward blocks skipped, %" if by_share else "perplexity ÷ dense")
    axes.set_ylabel(f"decode speed ÷ dense ({speed['dense_tokens_per_second']:.0f} tok/s)")
    axes.margins(0.08, 0.14)
    axes.set_title("quality against speed, over budgets", loc="left", fontsize=10.5, color=INK)


_NOTE: Mapping[str, Any] = {"textcoords": "offset points", "fontsize": 8.5}


def _caption(sweep: Mapping[str, Any]) -> str:
    text = f"{sweep['tokens']} tokens of {sweep['text']}, windows of {sweep['window']}, warm-up {sweep['warmup']}"
    if speed := sweep.get("speed"):
        text += f"; speed: batch 1, {speed['threads']} threads, the dense twin in the same run"
    return text + ". Points far above are left out."


def skip_map(skips: Skips, gates: SkipGates, tokens: Sequence[str], title: str, note: str = "") -> Figure:
    """Layers × tokens: which feed-forward blocks were skipped.

    Args:
        skips: What ran, one row for each of `tokens`.
        gates: Gates of the bundle.
        tokens: The text of each token.
        title: Title of the picture.
        note: What is said under it first.

    Raises:
        RequestError: no token was written after the warm-up.
    """
    if not len(skips.ran):
        raise RequestError(f"no token after the warm-up of {gates.warmup} positions; ask for more tokens")
    count = min(len(skips.ran), len(tokens), MOST_TOKENS)
    ran = skips.ran[:count]
    cells = np.full((gates.blocks, count), 2)
    cells[list(gates.layers)] = ran.T
    figure = _figure(max(6.0, 1.9 + 0.155 * count), 1.9 + 0.135 * gates.blocks)
    wide, narrow = figure.subplots(1, 2, width_ratios=[count, max(5, count * 0.09)], sharey=True)
    from matplotlib.colors import ListedColormap

    colours = ListedColormap([COLOURS["learned"], "#e4ebf5", "#f6f7f9"])
    wide.pcolormesh(cells, cmap=colours, vmin=0, vmax=2, edgecolors="white", linewidth=0.6)
    wide.set_xticks(np.arange(count) + 0.5, [_shown(each) for each in tokens[:count]], rotation=90, fontsize=6.5)
    wide.set_yticks(np.arange(0, gates.blocks, 5) + 0.5, [str(n) for n in range(0, gates.blocks, 5)], fontsize=8)
    wide.set_ylabel("layer")
    share = np.zeros(gates.blocks)
    share[list(gates.layers)] = 100 * (~skips.ran).mean(0)
    narrow.barh(np.arange(gates.blocks) + 0.5, share, height=0.8, color=COLOURS["learned"])
    narrow.set_xlim(0, 100)
    narrow.set_xticks([0, 100], ["0", "100 %"], fontsize=7)
    narrow.set_title("of all tokens", fontsize=8, color="#5a6478")
    for axes in (wide, narrow):
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.suptitle(title, x=0.012, ha="left", fontsize=10.5, fontweight="bold", color=INK)
    caption = f"{note}{skips.share:.0%} of {gates.blocks} blocks skipped. Blue: skipped; light: ran; grey: no gate."
    figure.text(0.012, 0.01, caption, fontsize=8, color="#5a6478")
    return figure


def _shown(token: str) -> str:
    text = token.replace("\n", "⏎").replace("\t", "→").strip(" ") or "·"
    # Signs that the picture's font may lack would be boxes, with a warning each.
    text = "".join(c if (c.isprintable() and ord(c) < 0x250) or c in "⏎→·" else "?" for c in text)
    return text.replace("$", r"\$") if len(text) <= 9 else f"{text[:8]}…".replace("$", r"\$")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=160)
    figure.get_layout_engine().set(rect=(0.005, 0.04, 0.99, 0.955))  # type: ignore[union-attr, call-arg]
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a picture; the file's ending says whether PNG or SVG.

    Raises:
        RequestError: another ending, or it cannot be written.
    """
    if path.suffix not in (".png", ".svg"):
        raise RequestError(f"{path}: .png or .svg is right")
    for axes in figure.axes:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, facecolor="white")
    except OSError as error:
        raise RequestError(f"{path}: cannot be written: {error.strerror or error}") from error
