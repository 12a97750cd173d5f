"""Long prompts on a GPU: layer by layer through ONNX Runtime, whose products of many rows are cuBLAS's.

A layer's packed weights are written out in half precision right before it runs, into memory that all layers use one
after another. Keys and values go where our own kernels read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.kernel_steps.memory import KernelMemory
from adaptc.runtime.backends.cuda.kernel_steps.packed_weights import PackedWeights
from adaptc.runtime.backends.cuda.kernel_steps.stepper import KernelStepper
from adaptc.runtime.backends.cuda.kernel_steps.values import ITEM
from adaptc.runtime.backends.cuda.kernels.packed_gemm import ROWS, PackedLayout
from adaptc.runtime.backends.cuda.kernels.unpack import enqueue_unpack, unpack_kernel
from adaptc.runtime.backends.cuda.step import StepPlacement
from adaptc.runtime.backends.onnxruntime_cuda.sessions import Bound, PromptSession
from adaptc.runtime.bundle.gpu_steps.device_prompt import PromptCall, PromptPieces, PromptProduct
from adaptc.runtime.bundle.gpu_steps.device_step import DeviceStep
from adaptc.runtime.bundle.manifest import TensorSpec
from adaptc.runtime.bundle.names import SEQLENS_K, TOTAL_SEQUENCE_LENGTH, cache_tensor, past


@dataclass(slots=True)
class PromptMemory:
    """Memory that the prompts of all graphs of a bundle use, one after another.

    Attributes:
        tokens: Most tokens of a piece of a prompt.
        values: Addresses of buffers for values.
        products: Addresses of buffers for weights in half precision.
        lengths: Address of int32[1], the position of the last token.
        bytes: All that was taken.
    """

    tokens: int
    values: list[int] = field(default_factory=list)
    products: list[int] = field(default_factory=list)
    lengths: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, cuda: Cuda, parts: Iterable[tuple[DeviceStep, PromptPieces]], tokens: int) -> PromptMemory:
        """Take the memory that these graphs need for so many tokens.

        Raises:
            EngineError: the GPU has too little.
        """
        memory, values, products = cls(tokens), dict[int, int](), dict[int, int]()
        for step, pieces in parts:
            for name, place in buffers_of(pieces).items():
                size = pieces.values[name].width * ITEM[pieces.values[name].dtype] * tokens
                values[place] = max(size, values.get(place, 0))
            for call in pieces.calls:
                for place, name in enumerate(name for name in call.reads if name in pieces.products):
                    weight = step.gemms[pieces.products[name].gemm]
                    products[place] = max(2 * weight.results * weight.columns, products.get(place, 0))
        memory.values = [memory._take(cuda, values[place]) for place in sorted(values)]
        memory.products = [memory._take(cuda, products[place]) for place in sorted(products)]
        memory.lengths = memory._take(cuda, 4)
        return memory

    def _take(self, cuda: Cuda, size: int) -> int:
        self.bytes += size
        return cuda.alloc(size)


def buffers_of(pieces: PromptPieces) -> dict[str, int]:
    """Which buffer each value lies in: one is free again after the last call that reads what lies in it."""
    last = {name: index for index, call in enumerate(pieces.calls) for name in call.reads}
    last |= dict.fromkeys(pieces.ends, len(pieces.calls))
    home: dict[str, int] = {}
    free: list[int] = []
    made: dict[str, int] = {}
    first = [name for name in pieces.values if not any(name in call.writes for call in pieces.calls)]
    for index in range(-1, len(pieces.calls)):
        writes = first if index < 0 else [name for name in pieces.calls[index].writes if name in pieces.values]
        for name in writes:
            home[name] = free.pop() if free else len(set(home.values()))
            made[name] = index
        ended = [name for name in made if last.get(name, -1) <= index]
        for name in ended:
            free.append(home[name])
            del made[name]
    return home


class PromptLayers:
    """Reads the prompts of one graph."""

    def __init__(
        self,
        cuda: Cuda,
        step: DeviceStep,
        pieces: PromptPieces,
        sessions: Mapping[str, PromptSession],
        weights: PackedWeights,
        memory: PromptMemory,
        machinery: tuple[KernelMemory, KernelStepper],
    ) -> None:
        """Take what weights it needs beside the packed ones.

        Args:
            cuda: The GPU.
            step: The step that the pieces go with.
            pieces: The layers.
            sessions: Their graphs, by name.
            weights: All weights of the bundle.
            memory: What prompts use.
            machinery: Where the step's packed weights lie, and what looks up its embedding.

        Raises:
            EngineError: the GPU has too little memory.
        """
        self._cuda, self._step, self._pieces, self._sessions, self._memory = cuda, step, pieces, sessions, memory
        self._packed, self._stepper = machinery[0].gemms, machinery[1]
        self._total = np.zeros((), np.int32)  # ONNX Runtime's attention reads it on the host
        self._values = {name: memory.values[place] for name, place in buffers_of(pieces).items()}
        self._plain = {
            (name, spec.dtype): weights.plain(step, name, spec.dtype)
            for call in pieces.calls
            for name, spec in zip(call.reads, pieces.graphs[call.graph].inputs, strict=True)
            if name in step.weights and name not in pieces.products
        }
        for product in pieces.products.values():
            unpack_kernel(cuda, PackedLayout.of(step.gemms[product.gemm]))

    def serves(self, tokens: int) -> bool:
        """Whether it reads a piece of a prompt of so many tokens; fewer are read sooner by a step's own kernels."""
        return ROWS < tokens <= self._memory.tokens

    def read(self, place: StepPlacement, part: range, stream: Any) -> StepPlacement:
        """Read part of a prompt into a row of the cache, up to what the head reads. Nothing may be in flight.

        Args:
            place: Where the part's tokens or states, and the row's keys and values lie.
            part: Positions of its tokens.
            stream: In whose order.

        Returns:
            Where the head, or a tail, finds what it reads.

        Raises:
            EngineError: ONNX Runtime failed.
        """
        here = replace(place, given={**place.given, **self._values})
        self._stepper.look_up(here, stream)
        self._total[...] = part.stop
        self._cuda.put_async(self._memory.lengths, np.array([part.stop - 1], np.int32), stream)
        for call in self._pieces.calls:
            self._run(call, here, stream)
        return replace(place, given={**place.given, **{name: self._values[name] for name in self._pieces.ends}})

    def _run(self, call: PromptCall, place: StepPlacement, stream: Any) -> None:
        graph, free = self._pieces.graphs[call.graph], iter(self._memory.products)
        inputs = []
        for name, spec in zip(call.reads, graph.inputs, strict=True):
            if name in self._pieces.products:
                address = next(free)
                self._unpack(self._pieces.products[name], address, stream)
            elif (name, spec.dtype) in self._plain:
                address = self._plain[name, spec.dtype]
            else:
                address = self._at(name, place.given)
            inputs.append(self._bound(name, spec, address, place.tokens))
        pairs = zip(call.writes, graph.outputs, strict=True)
        outputs = [self._bound(name, spec, self._at(name, place.given), place.tokens) for name, spec in pairs]
        self._sessions[call.graph].run(inputs, outputs)

    def _unpack(self, product: PromptProduct, to: int, stream: Any) -> None:
        packed, weight = self._packed[product.gemm], self._step.gemms[product.gemm]
        factor = packed.factor * product.factor
        enqueue_unpack(self._cuda, PackedLayout.of(weight), packed.records, to, factor, weight.pair, stream)

    def _at(self, name: str, given: Mapping[str, int]) -> int:
        if name == SEQLENS_K:
            return self._memory.lengths
        if name == TOTAL_SEQUENCE_LENGTH:
            return self._total.ctypes.data
        cache = cache_tensor(name)
        return given[name if cache is None else past(cache.layer, cache.kind)]

    @staticmethod
    def _bound(name: str, spec: TensorSpec, address: int, tokens: int) -> Bound:
        sizes = {"batch": 1, "tokens": tokens}
        shape = tuple(size if isinstance(size, int) else sizes[size] for size in spec.shape)
        return Bound(address, spec.dtype, shape, name == TOTAL_SEQUENCE_LENGTH)
