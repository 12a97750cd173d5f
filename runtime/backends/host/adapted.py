"""A graph and its form with adapters, over the same weights and one KV cache, as one engine.

A step none of whose sequences has an adapter runs the graph as it is, and costs what it did without adapters.
"""

from __future__ import annotations

from collections.abc import Callable

from adaptc.runtime.backends.engine import Arrays, BoundRun, Engine, check_complete
from adaptc.runtime.bundle.manifest import TensorSpec
from adaptc.runtime.bundle.names import ADAPTER


class AdaptedEngine:
    """Both graphs as one engine; that with adapters is loaded by the first step that needs it.

    Its inputs are those of the plain graph, and which adapter each sequence has.
    """

    def __init__(self, plain: Engine, load: Callable[[], Engine]) -> None:
        """Take the plain graph.

        Args:
            plain: Without adapters; closed with this.
            load: Loads the form with adapters.
        """
        chosen = TensorSpec(ADAPTER, "int64", (plain.inputs[0].shape[0],))
        self.inputs, self.outputs = (*plain.inputs, chosen), plain.outputs
        self._load = load
        self._plain = plain
        self._adapted: Engine | None = None

    def bind(self, feeds: Arrays, outputs: Arrays) -> BoundRun:
        """See `Engine.bind`."""
        check_complete(self.inputs, feeds)
        check_complete(self.outputs, outputs)
        return _AdaptedRun(self, feeds, outputs)

    def close(self) -> None:
        """See `Engine.close`."""
        self._plain.close()
        if self._adapted is not None:
            self._adapted.close()

    def bind_form(self, adapted: bool, feeds: Arrays, outputs: Arrays) -> BoundRun:
        """A bound run of one of the graphs."""
        if not adapted:
            return self._plain.bind(_without(feeds), outputs)
        if self._adapted is None:
            self._adapted = self._load()
        return self._adapted.bind(feeds, outputs)


class _AdaptedRun:
    """Bound runs of both graphs over the same arrays; each is bound when it is first called."""

    def __init__(self, engine: AdaptedEngine, feeds: Arrays, outputs: Arrays) -> None:
        self._engine = engine
        self._feeds, self._outputs = dict(feeds), dict(outputs)
        self._chosen = feeds[ADAPTER]
        self._runs: dict[bool, BoundRun] = {}

    def __call__(self) -> None:
        adapted = bool(self._chosen.any())
        run = self._runs.get(adapted)
        if run is None:
            run = self._runs[adapted] = self._engine.bind_form(adapted, self._feeds, self._outputs)
        run()

    def rebind(self, feeds: Arrays, outputs: Arrays) -> None:
        self._feeds.update(feeds)
        self._outputs.update(outputs)
        self._chosen = self._feeds[ADAPTER]
        for adapted, run in self._runs.items():
            run.rebind(feeds if adapted else _without(feeds), outputs)


def _without(feeds: Arrays) -> Arrays:
    """The arrays that the plain graph has."""
    return {name: array for name, array in feeds.items() if name != ADAPTER}
