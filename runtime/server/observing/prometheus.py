"""Counters, gauges and histograms, and the text in which Prometheus reads them.

The text is a few lines to write, so that no package is needed for it and no registry outlives a server.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence

Labels = tuple[str, ...]
_INF = float("inf")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metric:
    """A number, or one for each combination of labels."""

    kind = "counter"

    def __init__(self, name: str, help_: str, labels: Sequence[str] = ()) -> None:
        """Start at 0.

        Args:
            name: As Prometheus shows it; a counter's ends in `_total`.
            help_: A sentence.
            labels: Names of its labels.
        """
        self.name, self.help, self.labels = name, help_, tuple(labels)
        self._values: dict[Labels, float] = {} if labels else {(): 0.0}
        self._lock = threading.Lock()

    def add(self, amount: float, *labels: str) -> None:
        """Add to the number of these labels."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0.0) + amount

    def value(self, *labels: str) -> float:
        """The number of these labels."""
        return self._values.get(labels, 0.0)

    def values(self) -> dict[Labels, float]:
        """The number of all labels."""
        with self._lock:
            return dict(self._values)

    def samples(self) -> Iterator[tuple[str, str, float]]:
        """(suffix of the name, labels as text, number) of each line."""
        for labels, value in sorted(self.values().items()):
            yield "", _braces(self.labels, labels), value


class Gauge(Metric):
    """Numbers that are asked for when they are read."""

    def __init__(
        self,
        name: str,
        help_: str,
        read: Callable[[], Iterable[tuple[Labels, float]]],
        labels: Sequence[str] = (),
        kind: str = "gauge",
    ) -> None:
        """Read nothing yet.

        Args:
            name: As Prometheus shows it.
            help_: A sentence.
            read: Gives (values of the labels, number) of each.
            labels: Names of its labels.
            kind: "gauge", or "counter" for what is counted elsewhere.
        """
        super().__init__(name, help_, labels)
        self.kind = kind
        self._read = read

    def values(self) -> dict[Labels, float]:
        return dict(self._read())


class Histogram(Metric):
    """How often a quantity was below each of some bounds."""

    kind = "histogram"

    def __init__(self, name: str, help_: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> None:
        """Start without observations.

        Args:
            name: As Prometheus shows it.
            help_: A sentence.
            bounds: Ascending.
            labels: Names of its labels.
        """
        super().__init__(name, help_, labels)
        self._bounds = tuple(map(float, bounds))
        self._counts: dict[Labels, list[int]] = {}

    def observe(self, value: float, *labels: str, times: int = 1) -> None:
        """Count a value, as often as it came."""
        with self._lock:
            counts = self._counts.setdefault(labels, [0] * (len(self._bounds) + 1))
            counts[bisect_left(self._bounds, value)] += times
            self._values[labels] = self._values.get(labels, 0.0) + value * times

    def samples(self) -> Iterator[tuple[str, str, float]]:
        with self._lock:
            counts = {labels: list(each) for labels, each in self._counts.items()}
            sums = dict(self._values)
        for labels, each in sorted(counts.items()):
            total = 0
            for bound, count in zip((*self._bounds, _INF), each, strict=True):
                total += count
                yield (
                    "_bucket",
                    _braces((*self.labels, "le"), (*labels, "+Inf" if bound == _INF else repr(bound))),
                    total,
                )
            yield "_sum", _braces(self.labels, labels), sums[labels]
            yield "_count", _braces(self.labels, labels), total


def exposition(metrics: Iterable[Metric]) -> str:
    """All metrics as Prometheus reads them."""
    lines = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        lines += [f"{metric.name}{suffix}{labels} {_number(value)}" for suffix, labels, value in metric.samples()]
    return "\n".join(lines) + "\n"


def _braces(names: Sequence[str], values: Sequence[str]) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if value == _INF:
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(value)
