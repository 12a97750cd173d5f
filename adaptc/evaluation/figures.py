"""Figures with intervals of 95 %, and how they stand in a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

Z = NormalDist().inv_cdf(0.975)
"""Standard errors of half an interval of 95 %."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What a task measured.

    Attributes:
        name: lm-evaluation-harness's name of the metric.
        value: The mean over all documents.
        low: Lower end of its interval of 95 %: Wilson's for a share, else by the standard error.
        high: Upper end.
        each: The metric of each document, in order, so that two runs can be compared document by document; of a mean
            over tokens what each document adds to it. Their mean is the value.
    """

    name: str
    value: float
    low: float
    high: float
    each: tuple[float, ...]

    @property
    def is_share(self) -> bool:
        """Whether every document is right or wrong."""
        return all(each in (0.0, 1.0) for each in self.each)


def figure_of(name: str, value: float, error: float | None, each: Sequence[float]) -> Figure:
    """A figure with its interval.

    Args:
        name: Of the metric.
        value: Over all documents.
        error: The standard error that lm-evaluation-harness found; None if it found none.
        each: The metric of each document, not empty.
    """
    if all(one in (0.0, 1.0) for one in each):
        low, high = wilson(int(sum(each)), len(each))
    else:
        half = Z * (error or 0.0)
        low, high = value - half, value + half
    return Figure(name, value, low, high, tuple(each))


def mean_over(name: str, sums: Sequence[float], counts: Sequence[int]) -> Figure:
    """The mean of what was summed in groups, such as tokens of texts; its interval takes groups as independent.

    Args:
        name: Of the metric.
        sums: Of each group.
        counts: Of each group's members, from 1.
    """
    groups, members = len(sums), sum(counts)
    value = sum(sums) / members
    spread = sum((each - value * count) ** 2 for each, count in zip(sums, counts, strict=True))
    half = Z * (spread * groups / max(1, groups - 1)) ** 0.5 / members
    return Figure(name, value, value - half, value + half, tuple(each * groups / members for each in sums))


def wilson(right: int, asked: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share: `right` of `asked`, which is at least 1."""
    share, weight = right / asked, Z * Z / asked
    center = (share + weight / 2) / (1 + weight)
    half = Z / (1 + weight) * (share * (1 - share) / asked + weight / (4 * asked)) ** 0.5
    return max(0.0, center - half), min(1.0, center + half)


def paired_difference(figure: Figure, base: Figure) -> tuple[float, float]:
    """How far a figure is from another of the same documents: the mean difference, and half its interval of 95 %.

    Both were measured on the same questions, so this is far narrower than the two intervals are.
    """
    differences = [one - other for one, other in zip(figure.each, base.each, strict=True)]
    count = len(differences)
    mean = sum(differences) / count
    spread = sum((each - mean) ** 2 for each in differences) / max(1, count - 1)
    return mean, float(Z * (spread / count) ** 0.5)


def record_of(figure: Figure) -> dict[str, Any]:
    """A figure for JSON."""
    return {
        "metric": figure.name,
        "value": figure.value,
        "low": figure.low,
        "high": figure.high,
        "asked": len(figure.each),
        "each": list(figure.each),
    }


def cell(figure: Figure, base: Figure | None = None) -> str:
    """A figure in a table, with its interval; against `base` if that is another one of the same documents."""
    if figure.is_share:
        shown = f"{figure.value:.1%} ({figure.low:.1%} to {figure.high:.1%})"
    else:
        shown = f"{figure.value:.4f} ({figure.low:.4f} to {figure.high:.4f})"
    if base is None or len(base.each) != len(figure.each):
        return shown
    mean, half = paired_difference(figure, base)
    scale, unit = (100, " points") if figure.is_share and base.is_share else (1, "")
    digits = 1 if scale == 100 else 4
    return f"{shown}; {mean * scale:+.{digits}f} ± {half * scale:.{digits}f}{unit}"
