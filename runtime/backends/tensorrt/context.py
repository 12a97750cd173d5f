"""One engine of TensorRT, loaded, and the context that runs it over bare addresses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adaptc.runtime.backends.tensorrt.engines import EngineFolder, EngineRecord
from adaptc.runtime.backends.tensorrt.library import Trt
from adaptc.runtime.errors import EngineError


class Context:
    """One engine and the context that runs it."""

    def __init__(self, trt: Trt, runtime: Any, folder: EngineFolder, record: EngineRecord) -> None:
        self._trt, self._where = trt, str(folder.plan(record))
        self._engine: Any = runtime.deserialize_cuda_engine(folder.read(record))
        if self._engine is None:
            reason = trt.last_error() or "no reason given"
            mend = "; free some memory of the GPU" if "memory" in reason.lower() else ""
            raise EngineError(f"{self._where}: {trt.flavour} cannot load it: {reason}{mend}")
        strategy = getattr(trt.module, "ExecutionContextAllocationStrategy", None)
        if strategy is not None:
            self._context: Any = self._engine.create_execution_context(strategy.USER_MANAGED)
        else:
            self._context = self._engine.create_execution_context_without_device_memory()
        if self._context is None:
            raise EngineError(f"{self._where}: no memory for its context; free some memory of the GPU")
        size = getattr(self._engine, "device_memory_size_v2", None)
        self.bytes = int(self._engine.device_memory_size if size is None else size)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._moving = any(least != most for least, _, most in record.sizes.values())

    def dtype(self, name: str) -> np.dtype[Any]:
        """The type of an input or output; 8.6 narrows int64 to int32."""
        found: np.dtype[Any] = np.dtype(self._trt.module.nptype(self._engine.get_tensor_dtype(name)))
        return found

    def use(self, address: int, size: int) -> None:
        """Put its activations there."""
        if hasattr(self._context, "set_device_memory"):
            self._context.set_device_memory(address, size)
        else:
            self._context.device_memory = address

    def enqueue(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int], stream: Any) -> None:
        """Run it over these addresses."""
        context = self._context
        if self._moving and shapes != self._shapes:
            for name, shape in shapes.items():
                context.set_input_shape(name, shape)
            self._shapes = dict(shapes)
        for name, address in addresses.items():
            context.set_tensor_address(name, address)
        if not context.execute_async_v3(int(stream)):
            raise EngineError(f"{self._where}: {self._trt.flavour} failed: {self._trt.last_error()}")

    def close(self) -> None:
        """Free it, the context first."""
        self._context = None
        self._engine = None
