"""The interface of an engine that runs graphs on arrays in the host's memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from adaptc.runtime.bundle.manifest import TensorSpec
from adaptc.runtime.errors import EngineError

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


@runtime_checkable
class Engine(Protocol):
    """A loaded graph.

    The caller owns all memory: a bound run reads and writes the arrays it is bound to, so a loop binds once, changes
    the arrays' contents, and runs. The same array may be an input and an output.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The graph's inputs, in its order."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph's outputs, in its order."""

    def bind(self, feeds: Arrays, outputs: Arrays) -> BoundRun:
        """Prepare a run of the graph over these arrays.

        Args:
            feeds: One C-contiguous array for each input.
            outputs: One C-contiguous array for each output, of the shape the graph computes.

        Raises:
            EngineError: an array is missing, not contiguous, or of another type than the graph's.
        """

    def close(self) -> None:
        """Free what the engine holds; runs bound to it must not be called any more."""


class BoundRun(Protocol):
    """A prepared run of a graph; it keeps its arrays alive."""

    def __call__(self) -> None:
        """Run the graph once.

        Raises:
            EngineError: it failed.
        """

    def rebind(self, feeds: Arrays, outputs: Arrays) -> None:
        """Use other arrays for the tensors named here, and the same ones for all others.

        Raises:
            EngineError: as `Engine.bind`.
        """


def check_complete(specs: tuple[TensorSpec, ...], arrays: Arrays) -> None:
    """Refuse a binding that leaves a tensor out.

    Raises:
        EngineError: naming the tensor.
    """
    for spec in specs:
        if spec.name not in arrays:
            raise EngineError(f"{spec.name}: the graph has it, and no array is bound to it")


def check_array(specs: Mapping[str, TensorSpec], name: str, array: Array) -> None:
    """Refuse an array that an engine would misread, since a bound run works on bare memory.

    Raises:
        EngineError: naming the tensor.
    """
    spec = specs.get(name)
    if spec is None:
        raise EngineError(f"{name}: the graph has no such tensor; there are: {', '.join(specs)}")
    shape = array.shape
    fits = len(shape) == len(spec.shape) and all(
        known == size or isinstance(known, str) for known, size in zip(spec.shape, shape, strict=True)
    )
    if not fits or array.dtype != np.dtype(spec.dtype):
        needed = f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"
        raise EngineError(f"{name}: {array.dtype}{list(shape)}; {needed} is needed")
    if not array.flags.c_contiguous:
        raise EngineError(f"{name}: the array is not C-contiguous")


class BoundArrays:
    """The checked arrays of a bound run, by name: a base class for engines.

    Attributes:
        feeds: One for each input.
        outputs: One for each output.
    """

    def __init__(self, engine: Engine, feeds: Arrays, outputs: Arrays) -> None:
        """Check and keep the arrays.

        Raises:
            EngineError: as `Engine.bind`.
        """
        check_complete(engine.inputs, feeds)
        check_complete(engine.outputs, outputs)
        self._specs = {s.name: s for s in engine.inputs}, {s.name: s for s in engine.outputs}
        self.feeds: dict[str, Array] = {}
        self.outputs: dict[str, Array] = {}
        self.rebind(feeds, outputs)

    def rebind(self, feeds: Arrays, outputs: Arrays) -> None:
        """See `BoundRun.rebind`."""
        for specs, arrays, bound in zip(self._specs, (feeds, outputs), (self.feeds, self.outputs), strict=True):
            for name, array in arrays.items():
                check_array(specs, name, array)
                bound[name] = array
