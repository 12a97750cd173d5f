"""Where everything lies that the kernels of one graph read and write."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.kernel_steps.packed_weights import PackedWeight, PackedWeights
from adaptc.runtime.backends.cuda.kernel_steps.values import buffer_bytes, places_of, row_bytes
from adaptc.runtime.backends.cuda.kernels import attention, packed_gemm
from adaptc.runtime.backends.cuda.memory import HEAD_ROWS
from adaptc.runtime.bundle.gpu_steps.device_step import DeviceStep
from adaptc.runtime.bundle.names import LOGITS

KEPT = frozenset((LOGITS,))
"""Values that the host reads when other graphs may have run, so their memory is no other value's."""


@dataclass(slots=True)
class SharedMemory:
    """Memory that all graphs of a bundle use, one after another.

    Attributes:
        rows: Most rows of a launch.
        places: Addresses of buffers for values.
        queries: Scratch of attention.
        parts: Scratch of attention and of products.
        arrived: Scratch of both, zeros between launches.
        bytes: All that was taken.
    """

    rows: int
    places: dict[int, int] = field(default_factory=dict)
    queries: int = 0
    parts: int = 0
    arrived: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, cuda: Cuda, steps: Iterable[DeviceStep], rows: int) -> SharedMemory:
        """Take the memory that these graphs need for so many rows.

        Raises:
            EngineError: the GPU has too little.
        """
        shared, sizes, scratch = cls(rows), dict[int, int](), [0, 0, 0]
        for step in steps:
            home = {name: place for name, place in places_of(step, kept=KEPT).items() if name not in KEPT}
            for place, size in buffer_bytes(home, step).items():
                sizes[place] = max(size, sizes.get(place, 0))
            for needed in _scratch(cuda, step, rows):
                scratch = [max(pair) for pair in zip(scratch, needed, strict=True)]
        shared.places = {place: shared._take(cuda, size * rows) for place, size in sizes.items()}
        shared.queries, shared.parts, shared.arrived = (shared._take(cuda, size) for size in scratch)
        return shared

    def _take(self, cuda: Cuda, size: int) -> int:
        self.bytes += size
        return cuda.alloc(size)


class KernelMemory:
    """Where the values and weights of one graph lie.

    Attributes:
        values: Addresses by name.
        row: Bytes of a row of each.
        weights: Addresses of plain weights, by name.
        gemms: Of packed ones, in the order of `DeviceStep.gemms`.
        shared: Scratch memory.
        bytes: What was taken for this graph, by what for: "weights", "cache", "values".
    """

    def __init__(self, cuda: Cuda, step: DeviceStep, weights: PackedWeights, shared: SharedMemory, rows: int) -> None:
        """Take memory and fill in the weights.

        Raises:
            EngineError: the GPU has too little memory.
            BundleError: a file of weights is too short.
        """
        self.bytes = {"weights": -weights.bytes, "cache": 0, "values": 0}
        self.shared, self.row = shared, row_bytes(step)
        self.gemms: list[PackedWeight] = [weights.packed(step, weight) for weight in step.gemms]
        self.weights = _plain(step, weights)
        self.bytes["weights"] += weights.bytes
        self.values: dict[str, int] = {}
        for name, place in places_of(step, kept=KEPT).items():
            if name in KEPT:
                size = self.row[name] * max(rows, HEAD_ROWS)
                self.bytes["values"] += size
                self.values[name] = cuda.alloc(size)
            else:
                self.values[name] = shared.places[place]


def _plain(step: DeviceStep, weights: PackedWeights) -> dict[str, int]:
    """Weights that kernels read as they are stored."""
    floats = {name for call in step.calls() if call.kind == "rows" for name in call.reads if name in step.weights}
    floats |= {weight.bias for weight in step.gemms} | {table.scales for table in step.lookups}
    floats |= {name for layer in step.attentions for name in (layer.cosine, layer.sine)}
    found = {name: weights.plain(step, name, "float32") for name in floats if name}
    others = {name for table in step.lookups for name in (table.codes, table.zeros) if name}
    return found | {name: weights.plain(step, name) for name in others}


def _scratch(cuda: Cuda, step: DeviceStep, rows: int) -> Iterable[tuple[int, int, int]]:
    """Bytes of queries, parts and arrivals that each call needs."""
    units = cuda.device.multiprocessors
    for layer in step.attentions:
        yield attention.scratch_sizes(layer, rows, units)
    for weight in step.gemms:
        layout = packed_gemm.PackedLayout.of(weight)
        splits = packed_gemm.splits_of(layout, rows, units)
        yield 0, 4 * splits * rows * weight.results if splits > 1 else 0, 4 * layout.tiles
