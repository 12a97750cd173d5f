"""An engine that is a Python function: for tests, and for trying the runtime without a model."""

from __future__ import annotations

from collections.abc import Callable

from adaptc.runtime.engine import Array, Arrays, Step, check_array, check_complete
from adaptc.runtime.errors import EngineError
from adaptc.runtime.manifest import TensorSpec

Function = Callable[[Arrays, Arrays], None]


class FakeEngine:
    """Runs `function(feeds, outputs)`, which fills the output arrays in place."""

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], function: Function) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.function: Function | None = function

    def bind(self, feeds: Arrays, outputs: Arrays) -> Step:
        """See `Engine.bind`."""
        check_complete(self.inputs, feeds)
        check_complete(self.outputs, outputs)
        step = _FakeStep(self)
        step.rebind(feeds, outputs)
        return step

    def close(self) -> None:
        """See `Engine.close`."""
        self.function = None


class _FakeStep:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._specs = {s.name: s for s in engine.inputs}, {s.name: s for s in engine.outputs}
        self._feeds: dict[str, Array] = {}
        self._outputs: dict[str, Array] = {}

    def __call__(self) -> None:
        if self._engine.function is None:
            raise EngineError("fake engine: closed")
        self._engine.function(self._feeds, self._outputs)

    def rebind(self, feeds: Arrays, outputs: Arrays) -> None:
        both = ((self._specs[0], feeds, self._feeds), (self._specs[1], outputs, self._outputs))
        for specs, arrays, bound in both:
            for name, array in arrays.items():
                check_array(specs, name, array)
                bound[name] = array
