"""Steps of kernels of ours on a GPU: ms by rows and by share of blocks skipped, and where a step's time goes.

python -m tests.gpu.kernel_times FOLDER NAME… over what tests.gpu.geometry wrote. Weights are drawn on the machine; a
step's time does not depend on them. Times are medians of six rounds of 30 launches of the captured step, over caches
that hold 16 tokens at the start of each round.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.cuda.decoder import GpuDecoder
from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.graph import GpuResources, row_sizes
from adaptc.runtime.backends.cuda.kernel_steps.memory import SharedMemory
from adaptc.runtime.backends.cuda.kernel_steps.packed_weights import PackedWeights
from adaptc.runtime.backends.cuda.kernel_steps.stepper import KernelStepper
from adaptc.runtime.backends.cuda.machinery import KernelForm
from adaptc.runtime.backends.onnxruntime_cuda.loading import KernelRunner
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.gpu_steps.device_step import DeviceStep, StepWeight
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.skip_gates import SkipGates

ROWS = (1, 2, 4, 8, 16, 32, 64)
ROUNDS, LAUNCHES, LENGTH = 7, 30, 16


class DrawnWeights(PackedWeights):
    """Weights that are drawn in the place of read. Gates say (3 · layer mod layers + 1/2) / layers for every token, so
    that a threshold skips a share of blocks that lie apart."""

    def __init__(self, cuda: Cuda, step: DeviceStep) -> None:
        super().__init__(cuda, cast("Bundle", SimpleNamespace(path="drawn")))
        random = np.random.default_rng(0)
        self._codes = random.integers(0, 256, 1 << 26, np.uint8)
        self._halves = (random.standard_normal(1 << 25, np.float32) * 0.02).astype(np.float16)
        self._names = {record.offset: name for name, record in step.weights.items()}
        self._layers = len(step.attentions)

    def _array(self, record: StepWeight) -> npt.NDArray[Any]:
        name, size = self._names[record.offset], int(np.prod(record.shape))
        if "skip.gate.bias" in name:
            layer = int(name.split("layers.")[1].split(".")[0])
            return np.full(record.shape, (3 * layer % self._layers + 0.5) / self._layers, record.dtype)
        if "skip.gate" in name or name.endswith(".sin"):
            return np.zeros(record.shape, record.dtype)
        if record.dtype == "uint8":
            return np.resize(self._codes, size).reshape(record.shape)
        if record.dtype == "float16":
            return np.resize(self._halves, size).reshape(record.shape)
        return np.full(record.shape, 0.002 if name.endswith("scales") else 1.0, np.float32)


def load(folder: Path, name: str, batch: int) -> GpuDecoder:
    """A decoder of drawn weights."""
    step = DeviceStep.from_json((folder / f"{name}.json").read_bytes())
    about = json.loads((folder / f"{name}.about.json").read_text())
    cuda, runner = Cuda(), KernelRunner()
    sizes = row_sizes(runner, batch)
    weights, shared = DrawnWeights(cuda, step), SharedMemory.of(cuda, [step], sizes[-1])
    gpu = GpuResources(cuda, cuda.stream(), runner, shared, sizes, sizes[-1])
    spec = DecoderSpec(about["vocab_size"], about["max_tokens"], tuple(map(tuple, about["kv"])), 0, (), None)
    count = about["gates"]
    gates = SkipGates("learned", tuple(range(count)), count, 0, "rows", ((0.0, -1.0), (1.0, 0.26))) if count else None
    decoder = GpuDecoder(gpu, KernelForm(cuda, step, weights, shared), spec, batch, gates)
    weights.done()
    return decoder


def milliseconds(decoder: GpuDecoder, run: Callable[[], None], before: Callable[[], None] = lambda: None) -> float:
    """Time of a launch, on the GPU's clock."""
    cuda, stream = decoder._gpu.cuda, decoder._gpu.stream
    begin, end = cuda.event(timing=True), cuda.event(timing=True)
    found = []
    for _ in range(ROUNDS):
        before()
        cuda.record(begin, stream)
        for _ in range(LAUNCHES):
            run()
        cuda.record(end, stream)
        cuda.wait(end)
        found.append(cuda.seconds(begin, end) / LAUNCHES * 1e3)
    return median(found[1:])


def step_time(decoder: GpuDecoder, rows: int, mode: str, threshold: float) -> float:
    """Time of a captured step."""
    graph = decoder.graph
    size = next(size for size in decoder._gpu.sizes if size >= rows)
    captured = graph.captured.get((size, graph.cache.bucket, mode))
    before, levels = np.full(rows, LENGTH, np.int64), np.full(rows, threshold, np.float32)

    def reset() -> None:
        graph.control.set([1] * rows, before, levels, (), 0, False, 0)

    return milliseconds(decoder, lambda: decoder._gpu.cuda.run(captured, decoder._gpu.stream), reset)


def kinds(decoder: GpuDecoder, rows: int) -> dict[str, float]:
    """Microseconds of a step's kernels by kind, each kind captured alone."""
    graph, cuda, stream = decoder.graph, decoder._gpu.cuda, decoder._gpu.stream
    stepper, step = graph.stepper, graph.partitions
    assert isinstance(stepper, KernelStepper)
    assert isinstance(step, DeviceStep)
    size = next(size for size in decoder._gpu.sizes if size >= rows)
    place, found = graph.captured.place(size, graph.cache.bucket), {}
    calls = {kind: [call for call in step.body if call.kind == kind] for kind in ("rows", "gemm", "attention")}
    for kind, some in {**calls, "head": list(step.head)}.items():
        cuda.begin_capture(stream)
        stepper._calls(some, place, stepper.all_run, stream)
        captured = cuda.end_capture(stream)

        def run(captured: Any = captured) -> None:
            cuda.run(captured, stream)

        found[kind] = round(milliseconds(decoder, run) * 1e3, 1)
        cuda.drop(captured)
    return found


def main(folder: Path, names: list[str]) -> None:
    """Print a line for each geometry and number of rows."""
    for name in names:
        decoder = load(folder, name, ROWS[-1])
        for rows in ROWS:
            dense = step_time(decoder, rows, "dense", -np.inf)
            line = f"{name} rows {rows}: dense {dense:.3f} ms"
            if decoder.gates is not None:
                times = [step_time(decoder, rows, "on_device", level) for level in (-1.0, 0.26, 0.51, 2.0)]
                line += "; 0, 25, 50, 100 % skipped " + ", ".join(f"{time:.3f}" for time in times)
            print(f"{line}; us {kinds(decoder, rows)}", flush=True)
        decoder.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
