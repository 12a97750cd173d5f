"""The memory of a session on a GPU: weights, cache, and the values between partitions. All of it is taken once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.bundle.manifest import DecoderSpec, TensorSpec
from adaptc.runtime.bundle.names import CACHE_KINDS, LOGITS, past
from adaptc.runtime.bundle.partitions import Call, Partitions
from adaptc.runtime.errors import BundleError

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "int64": 8, "bool": 1}
"""Size of an element."""


"""What the head gives, by name."""

HEAD_ROWS = 32
"""Tokens whose logits are computed at once when a text is scored."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory for values that are never needed at the same time.

    Attributes:
        index: Which buffer.
        row: Bytes that the largest value in it takes for each token of each row.
    """

    index: int
    row: int


def buffers_of(partitions: Partitions) -> dict[str, Buffer]:
    """A place for every value that one partition writes and another reads.

    A place is free again after the last call that reads it. What the whole gives (logits, the step's keys and values)
    keeps its place to the end. A gate's two sides are as one after the other: only one of them runs.
    """
    sizes = {
        name: row_bytes(spec)
        for call in partitions.calls()
        for spec, name in zip(partitions.graphs[call.graph].outputs, call.writes, strict=True)
    }
    order = [(step, call) for step in partitions.steps for call in step.calls()]
    last: dict[str, int] = {}
    for index, (step, call) in enumerate(order):
        last |= dict.fromkeys(call.reads, index)
        if step.when is not None:
            last[step.when.logit] = max(index, last.get(step.when.logit, 0))
    rows: list[int] = []
    free: list[int] = []
    home: dict[str, int] = {}
    for index, (_, call) in enumerate(order):
        for name in dict.fromkeys(call.writes):
            if name in home:  # the other side of a gate wrote it
                continue
            fitting = [place for place in free if rows[place] >= sizes[name]] or free
            if name == LOGITS:  # of a few tokens only, so they have a place of their own
                fitting = []
            place = min(fitting, key=lambda place: abs(rows[place] - sizes[name]), default=len(rows))
            if place == len(rows):
                rows.append(0)
            else:
                free.remove(place)
            rows[place] = max(rows[place], sizes[name])
            home[name] = place
        free += [place for name, place in home.items() if last.get(name) == index and place not in free]
    return {name: Buffer(place, rows[place]) for name, place in home.items()}


def row_bytes(spec: TensorSpec) -> int:
    """Bytes of a value for one token of one row."""
    return prod(size for size in spec.shape if isinstance(size, int)) * BYTES[spec.dtype]


class DeviceWeights:
    """A bundle's weights on the GPU: each once, however many graphs read it.

    Attributes:
        bytes: All that was taken.
    """

    def __init__(self, cuda: Cuda, data: Path) -> None:
        self.bytes = 0
        self._cuda, self._data = cuda, data
        self._content = np.memmap(data, np.uint8, "r")
        self._places: dict[tuple[int, int], int] = {}

    def upload(self, partitions: Partitions) -> dict[str, int]:
        """Put what these partitions read there; addresses by name.

        Raises:
            EngineError: the GPU has too little memory.
            BundleError: the file is too short.
        """
        read = {name for call in partitions.calls() for name in call.reads}
        read |= {gate.logit for gate in partitions.gates}
        found = {}
        for name, weight in partitions.weights.items():
            if name not in read:
                continue
            place = weight.offset, weight.bytes
            if weight.offset + weight.bytes > len(self._content):
                raise BundleError(f"{self._data}: too short for {name}; compile again")
            if place not in self._places:
                self.bytes += weight.bytes
                self._places[place] = self._cuda.alloc(weight.bytes)
                self._cuda.put(self._places[place], self._content[weight.offset : weight.offset + weight.bytes])
            found[name] = self._places[place]
        return found


class SharedValues:
    """Memory for the values between partitions. Graphs run one after another, so all of a bundle's share it.

    Attributes:
        bytes: All that was taken.
        places: Addresses by the index of a `Buffer`.
        rows: Most tokens of all rows in one step.
    """

    def __init__(self, cuda: Cuda, several: Iterable[Partitions], rows: int) -> None:
        sizes: dict[int, int] = {}
        for partitions in several:
            for name, buffer in buffers_of(partitions).items():
                if name != LOGITS:
                    sizes[buffer.index] = max(buffer.row, sizes.get(buffer.index, 0))
        self.rows = rows
        self.bytes = rows * sum(sizes.values())
        self.places = {index: cuda.alloc(size * rows) for index, size in sizes.items()}


class GraphMemory:
    """Where everything of one graph lies.

    Attributes:
        weights: Addresses by name.
        past: Addresses of each layer's keys and values, by name.
        bytes: What was taken for this graph, by what for: "weights" (those no graph before it reads), "cache",
            "values" (its logits).
    """

    def __init__(
        self,
        cuda: Cuda,
        partitions: Partitions,
        spec: DecoderSpec,
        batch: int,
        weights: DeviceWeights,
        values: SharedValues,
    ) -> None:
        """Take memory and fill in the weights.

        Args:
            cuda: The GPU.
            partitions: What will run.
            spec: Sizes of the cache.
            batch: Rows of the cache.
            weights: Has the weights.
            values: Has the values between partitions.

        Raises:
            EngineError: the GPU has too little memory.
            BundleError: the file of weights is too short.
        """
        self.bytes = {"weights": -weights.bytes, "cache": 0, "values": 0}
        self._cuda = cuda
        self.weights = weights.upload(partitions)
        self.bytes["weights"] += weights.bytes
        self.past: dict[str, int] = {}
        for layer, (heads, width) in enumerate(spec.kv):
            for kind in CACHE_KINDS:
                self.past[past(layer, kind)] = self._take("cache", batch * heads * width * spec.max_tokens * 2)
        self.values: dict[str, int] = {}
        self.row = {}
        for name, buffer in buffers_of(partitions).items():
            if name == LOGITS:  # read by the host when other graphs may have run, so no place that others use
                self.values[name] = self._take("values", buffer.row * max(batch, min(values.rows, HEAD_ROWS)))
            else:
                self.values[name] = values.places[buffer.index]
        for call in partitions.calls():
            for spec_, name in zip(partitions.graphs[call.graph].outputs, call.writes, strict=True):
                self.row[name] = row_bytes(spec_)

    def address(self, name: str, given: Mapping[str, int]) -> int:
        """Where a value lies; `given` comes first."""
        for known in (given, self.values, self.weights, self.past):
            if name in known:
                return known[name]
        raise BundleError(f"partitions: nothing gives {name!r}; compile again")

    def reads(self, call: Call, given: Mapping[str, int]) -> list[int]:
        """The addresses of a call's inputs."""
        return [self.address(name, given) for name in call.reads]

    def writes(self, call: Call, given: Mapping[str, int]) -> list[int]:
        """The addresses of a call's outputs."""
        return [self.address(name, given) for name in call.writes]

    def _take(self, what: str, size: int) -> int:
        self.bytes[what] += size
        return self._cuda.alloc(size)
