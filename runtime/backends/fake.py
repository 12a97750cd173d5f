"""An engine that is a Python function: for tests, and for trying the runtime without a model."""

from __future__ import annotations

from collections.abc import Callable

from adaptc.runtime.backends.engine import Arrays, BoundArrays, BoundRun
from adaptc.runtime.bundle.manifest import TensorSpec
from adaptc.runtime.errors import EngineError

Function = Callable[[Arrays, Arrays], None]


class FakeEngine:
    """Runs `function(feeds, outputs)`, which fills the output arrays in place."""

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], function: Function) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.function: Function | None = function

    def bind(self, feeds: Arrays, outputs: Arrays) -> BoundRun:
        """See `Engine.bind`."""
        return _FakeRun(self, feeds, outputs)

    def close(self) -> None:
        """See `Engine.close`."""
        self.function = None


class _FakeRun(BoundArrays):
    def __init__(self, engine: FakeEngine, feeds: Arrays, outputs: Arrays) -> None:
        super().__init__(engine, feeds, outputs)
        self._engine = engine

    def __call__(self) -> None:
        if self._engine.function is None:
            raise EngineError("fake engine: closed")
        self._engine.function(self.feeds, self.outputs)
