"""A graph with gates and the same graph without them, over one cache: what must not skip does not pay for gates.

Asking a gate takes time even where every block runs, 9 to 31 µs each where it was measured, so 4 to 5 % of a step of
SmolLM2-135M (docs/results/smollm2-skip.md). A step that skips nothing for certain runs the graph without gates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from adaptc.runtime.backends.engine import Arrays, Engine, Step, check_complete
from adaptc.runtime.bundle.manifest import TensorSpec
from adaptc.runtime.model.budget import DENSE

Kind = Literal["gated", "dense"]

THRESHOLD, RAN = "threshold", "ran"
"""What a graph with gates reads and gives besides what the other does."""


class Twins:
    """Both graphs as one engine, of the form of the one with gates. Each is loaded once it is wanted.

    Loading packs a graph's weights into memory of its own unless `adaptc build` did so (packed.py), so a
    session that never skips, or always does, should have one of them only.
    """

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        load: Callable[[Kind], Engine],
        wanted: tuple[Kind, ...],
    ) -> None:
        """Load what is wanted now.

        Args:
            inputs: Of the graph with gates.
            outputs: Of the graph with gates.
            load: Loads one of the graphs.
            wanted: What is loaded now. Without "dense" here every step asks the gates; "gated" is loaded in any case
                by the first step that may skip.

        Raises:
            EngineError: as `load`.
        """
        self.inputs, self.outputs = inputs, outputs
        self._load = load
        self._loaded: dict[Kind, Engine] = {kind: load(kind) for kind in wanted}

    def bind(self, feeds: Arrays, outputs: Arrays) -> Step:
        """See `Engine.bind`."""
        check_complete(self.inputs, feeds)
        check_complete(self.outputs, outputs)
        return _Step(self, feeds, outputs)

    def close(self) -> None:
        """See `Engine.close`."""
        for engine in self._loaded.values():
            engine.close()

    def kind(self, feeds: Arrays) -> Kind:
        """Which of the graphs a step over these arrays runs."""
        return "dense" if "dense" in self._loaded and feeds[THRESHOLD].max() == DENSE else "gated"

    def bound(self, kind: Kind, feeds: Arrays, outputs: Arrays) -> Step:
        """A step of one of the graphs."""
        if kind not in self._loaded:
            self._loaded[kind] = self._load(kind)
        return self._loaded[kind].bind(*_of(kind, feeds, outputs))


class _Step:
    """Steps of both graphs over the same arrays, each bound when it is first run."""

    def __init__(self, twins: Twins, feeds: Arrays, outputs: Arrays) -> None:
        self._twins = twins
        self._feeds, self._outputs = dict(feeds), dict(outputs)
        self._steps: dict[Kind, Step] = {}

    def __call__(self) -> None:
        kind = self._twins.kind(self._feeds)
        step = self._steps.get(kind)
        if step is None:
            step = self._steps[kind] = self._twins.bound(kind, self._feeds, self._outputs)
        step()
        if kind == "dense":
            self._outputs[RAN][...] = True

    def rebind(self, feeds: Arrays, outputs: Arrays) -> None:
        self._feeds.update(feeds)
        self._outputs.update(outputs)
        for kind, step in self._steps.items():
            step.rebind(*_of(kind, feeds, outputs))


def _of(kind: Kind, feeds: Arrays, outputs: Arrays) -> tuple[Arrays, Arrays]:
    """What one of the graphs has of these arrays."""
    if kind == "gated":
        return feeds, outputs
    return {n: a for n, a in feeds.items() if n != THRESHOLD}, {n: a for n, a in outputs.items() if n != RAN}
