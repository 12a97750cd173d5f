"""A gated graph and its dense twin, the same weights without gates, as one engine over one KV cache.

Computing a gate takes time even where every block runs: 9 to 31 µs each where it was measured, so 4 to 5 % of a step of
SmolLM2-135M (docs/results/smollm2-skip.md). A step that is certain to skip nothing runs the dense twin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from adaptc.runtime.backends.engine import Arrays, BoundRun, Engine, check_complete
from adaptc.runtime.bundle.manifest import TensorSpec
from adaptc.runtime.bundle.names import RAN, THRESHOLD
from adaptc.runtime.model.budget import DENSE

Form = Literal["gated", "dense"]
"""Which of the two graphs."""

"""The input and the output that only the gated graph has."""


class TwinEngine:
    """Both graphs as one engine with the inputs and outputs of the gated one; each is loaded when it is first needed.

    ONNX Runtime packs the weights of every graph that it loads into memory of its own unless `adaptc build` did so
    before (onnxruntime_cpu/packed.py), so a session that never skips, or always does, should load one graph only.
    """

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        load: Callable[[Form], Engine],
        preload: tuple[Form, ...],
    ) -> None:
        """Load the graphs of `preload`.

        Args:
            inputs: Inputs of the gated graph.
            outputs: Outputs of the gated graph.
            load: Loads one of the graphs.
            preload: What is loaded now. Without "dense" every step computes the gates; without "gated" that graph is
                loaded by the first step that may skip.

        Raises:
            EngineError: as `load`.
        """
        self.inputs, self.outputs = inputs, outputs
        self._load = load
        self._loaded: dict[Form, Engine] = {form: load(form) for form in preload}

    def bind(self, feeds: Arrays, outputs: Arrays) -> BoundRun:
        """See `Engine.bind`."""
        check_complete(self.inputs, feeds)
        check_complete(self.outputs, outputs)
        return _TwinRun(self, feeds, outputs)

    def close(self) -> None:
        """See `Engine.close`."""
        for engine in self._loaded.values():
            engine.close()

    def form(self, feeds: Arrays) -> Form:
        """The graph that a step over these arrays runs."""
        return "dense" if "dense" in self._loaded and feeds[THRESHOLD].max() == DENSE else "gated"

    def bind_form(self, form: Form, feeds: Arrays, outputs: Arrays) -> BoundRun:
        """A bound run of one of the graphs."""
        if form not in self._loaded:
            self._loaded[form] = self._load(form)
        return self._loaded[form].bind(*_of(form, feeds, outputs))


class _TwinRun:
    """Bound runs of both graphs over the same arrays; each is bound when it is first called."""

    def __init__(self, twins: TwinEngine, feeds: Arrays, outputs: Arrays) -> None:
        self._twins = twins
        self._feeds, self._outputs = dict(feeds), dict(outputs)
        self._runs: dict[Form, BoundRun] = {}

    def __call__(self) -> None:
        form = self._twins.form(self._feeds)
        run = self._runs.get(form)
        if run is None:
            run = self._runs[form] = self._twins.bind_form(form, self._feeds, self._outputs)
        run()
        if form == "dense":
            self._outputs[RAN][...] = True

    def rebind(self, feeds: Arrays, outputs: Arrays) -> None:
        self._feeds.update(feeds)
        self._outputs.update(outputs)
        for form, run in self._runs.items():
            run.rebind(*_of(form, feeds, outputs))


def _of(form: Form, feeds: Arrays, outputs: Arrays) -> tuple[Arrays, Arrays]:
    """The arrays that one of the graphs has."""
    if form == "gated":
        return feeds, outputs
    return {n: a for n, a in feeds.items() if n != THRESHOLD}, {n: a for n, a in outputs.items() if n != RAN}
