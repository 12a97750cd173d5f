"""The memory of a session on a GPU: weights, cache, and the values between regions. All of it is taken once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from adaptc.runtime.cuda import Cuda
from adaptc.runtime.errors import BundleError
from adaptc.runtime.manifest import DecoderSpec, TensorSpec
from adaptc.runtime.regions import Call, Regions

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "int64": 8, "bool": 1}
"""Size of an element."""


LOGITS = "logits"
"""What the head gives, by name."""

HEAD_ROWS = 32
"""Tokens whose logits are computed at once when a text is scored."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for values that are never needed at the same time.

    Attributes:
        index: Which place.
        row: Bytes that the largest value in it takes for each token of each row.
    """

    index: int
    row: int


def slots_of(regions: Regions) -> dict[str, Slot]:
    """A place for every value that one region writes and another reads.

    A place is free again after the last call that reads it. What the whole gives (logits, the step's keys and values)
    keeps its place to the end. A gate's two sides are as one after the other: only one of them runs.
    """
    sizes = {
        name: row_bytes(spec)
        for call in regions.calls()
        for spec, name in zip(regions.graphs[call.graph].outputs, call.writes, strict=True)
    }
    order = [(step, call) for step in regions.steps for call in step.calls()]
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
    return {name: Slot(place, rows[place]) for name, place in home.items()}


def row_bytes(spec: TensorSpec) -> int:
    """Bytes of a value for one token of one row."""
    return prod(size for size in spec.shape if isinstance(size, int)) * BYTES[spec.dtype]


class Memory:
    """Where everything lies.

    Attributes:
        weights: Addresses by name.
        past: Addresses of each layer's keys and values, by name.
        bytes: All that was taken, by what for: "weights", "cache", "values".
    """

    def __init__(self, cuda: Cuda, regions: Regions, spec: DecoderSpec, batch: int, rows: int, data: Path) -> None:
        """Take memory and fill in the weights.

        Args:
            cuda: The GPU.
            regions: What will run.
            spec: Sizes of the cache.
            batch: Rows of the cache.
            rows: Most tokens of all rows in one step.
            data: The file of weights.

        Raises:
            EngineError: the GPU has too little memory.
            BundleError: the file is too short.
        """
        self.bytes = {"weights": 0, "cache": 0, "values": 0}
        self._cuda = cuda
        self.weights = dict(self._upload(regions, data))
        self.past: dict[str, int] = {}
        for layer, (heads, width) in enumerate(spec.kv):
            for kind in ("key", "value"):
                self.past[f"past.{layer}.{kind}"] = self._take("cache", batch * heads * width * spec.max_tokens * 2)
        places: dict[int, int] = {}
        self.values: dict[str, int] = {}
        self.row = {}
        for name, slot in slots_of(regions).items():
            if slot.index not in places:
                count = max(batch, min(rows, HEAD_ROWS)) if name == LOGITS else rows
                places[slot.index] = self._take("values", slot.row * count)
            self.values[name] = places[slot.index]
        for call in regions.calls():
            for spec_, name in zip(regions.graphs[call.graph].outputs, call.writes, strict=True):
                self.row[name] = row_bytes(spec_)

    def address(self, name: str, given: Mapping[str, int]) -> int:
        """Where a value lies; `given` comes first."""
        for known in (given, self.values, self.weights, self.past):
            if name in known:
                return known[name]
        raise BundleError(f"regions: nothing gives {name!r}; compile again")

    def reads(self, call: Call, given: Mapping[str, int]) -> list[int]:
        """The addresses of a call's inputs."""
        return [self.address(name, given) for name in call.reads]

    def writes(self, call: Call, given: Mapping[str, int]) -> list[int]:
        """The addresses of a call's outputs."""
        return [self.address(name, given) for name in call.writes]

    def _upload(self, regions: Regions, data: Path) -> Iterator[tuple[str, int]]:
        read = {name for call in regions.calls() for name in call.reads}
        read |= {gate.logit for gate in regions.gates}
        content = np.memmap(data, np.uint8, "r")
        places: dict[tuple[int, int], int] = {}
        for name, weight in regions.weights.items():
            if name not in read:
                continue
            place = weight.offset, weight.bytes
            if weight.offset + weight.bytes > len(content):
                raise BundleError(f"{data}: too short for {name}; compile again")
            if place not in places:
                places[place] = self._take("weights", weight.bytes)
                self._cuda.put(places[place], content[weight.offset : weight.offset + weight.bytes])
            yield name, places[place]

    def _take(self, what: str, size: int) -> int:
        self.bytes[what] += size
        return self._cuda.alloc(size)
