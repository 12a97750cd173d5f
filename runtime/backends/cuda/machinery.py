"""What a graph on a GPU is made of, whatever computes it: engines that run partitions, or kernels of ours alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.kernel_steps.kv_rows import KvRows
from adaptc.runtime.backends.cuda.kernel_steps.memory import KernelMemory, SharedMemory
from adaptc.runtime.backends.cuda.kernel_steps.packed_weights import PackedWeights
from adaptc.runtime.backends.cuda.kernel_steps.stepper import KernelStepper
from adaptc.runtime.backends.cuda.kv_cache import GpuKvCache
from adaptc.runtime.backends.cuda.memory import DeviceWeights, GraphMemory, SharedValues
from adaptc.runtime.backends.cuda.partition_runner import PartitionRunner
from adaptc.runtime.backends.cuda.step import StateLink, Stepper, StepPlacement
from adaptc.runtime.bundle.gpu_steps.device_step import DeviceStep
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.partitions import Partitions


class GraphStepper(Protocol):
    """Runs the parts of one graph; what follows gates, and how, is its own."""

    ran: int
    apart: int

    @property
    def all_run(self) -> Any:
        """Every block runs."""

    @property
    def on_device(self) -> Any:
        """The device follows the gates, while a step is captured."""

    @property
    def by_host(self) -> Any:
        """The host asks each gate."""

    @property
    def one_step_late(self) -> Any:
        """From a mask, what follows that while gates decide for the step after."""

    def load(self, place: StepPlacement) -> None:
        """Make what a step needs ready."""

    def settle(self, place: StepPlacement, stream: Any) -> None:
        """Run what takes memory when it first runs."""

    def masked(self, mask: Sequence[bool]) -> Any:
        """What has blocks run as the mask says."""

    def on_device_only(self, place: StepPlacement) -> bool:
        """Whether the device reads all gates of a step by itself."""

    def walk(self, place: StepPlacement, following: Any, stream: Any) -> None:
        """All of a step up to the head."""

    def head(self, place: StepPlacement, stream: Any, tokens: range | None = None) -> None:
        """Logits of each row, or of some tokens of the first."""

    def begin(self, state: int, place: StepPlacement, levels: int, stream: Any) -> None:
        """See `StepEnds.begin`."""

    def choose(self, state: int, place: StepPlacement, at: Mapping[str, int], vocab: int, stream: Any) -> None:
        """See `StepEnds.choose`."""

    def keep(self, state: int, place: StepPlacement, at: Mapping[str, int], link: StateLink, stream: Any) -> None:
        """See `StepEnds.keep`."""

    def take(self, state: int, place: StepPlacement, at: Mapping[str, int], link: StateLink, stream: Any) -> None:
        """See `StepEnds.take`."""

    def write_kv(self, state: int, place: StepPlacement, layers: tuple[int, int], valid: int, stream: Any) -> None:
        """See `StepEnds.write_kv`."""


class GraphCache(Protocol):
    """The KV cache of one graph."""

    bucket: int
    positions: int

    def fit(self, tokens: int, *, keep: bool, stream: Any) -> None:
        """Make room for so many tokens in every row."""

    def row(self, row: int) -> dict[str, int]:
        """Addresses of the cache from this row on, by the names of the graph's inputs."""

    def layers(self, row: int) -> npt.NDArray[Any]:
        """What `write_kv` needs."""

    def move(self, row: int, to: int, stream: Any) -> None:
        """Copy one row over another."""


class GraphPlaces(Protocol):
    """Where the values of one graph lie."""

    values: dict[str, int]
    weights: dict[str, int]
    bytes: dict[str, int]


class PromptReading(Protocol):
    """What reads long pieces of prompts in the stepper's place."""

    def serves(self, tokens: int) -> bool:
        """Whether it reads pieces of so many tokens."""

    def read(self, place: StepPlacement, part: range, stream: Any) -> StepPlacement:
        """Read part of a prompt, up to what the head reads; where that is found."""


class PromptMaker(Protocol):
    """Makes what reads a graph's prompts, once the graph lies on the GPU."""

    def __call__(self, memory: KernelMemory, stepper: KernelStepper) -> PromptReading:
        """Take the memory that prompts need."""


@dataclass(frozen=True, slots=True)
class Machinery:
    """A graph on a GPU.

    Attributes:
        form: What it was made from.
        memory: Where its weights and values lie.
        stepper: Runs its parts.
        cache: Its KV cache.
        prompts: Reads long pieces of prompts; None if the stepper reads all.
    """

    form: Partitions | DeviceStep
    memory: GraphPlaces
    stepper: GraphStepper
    cache: GraphCache
    prompts: PromptReading | None = None


class GraphForm(Protocol):
    """A graph that can be put onto a GPU."""

    def put(self, spec: DecoderSpec, rows: int) -> Machinery:
        """Take memory and fill in the weights.

        Args:
            spec: What the graph expects.
            rows: Slots of the cache.

        Raises:
            EngineError: the GPU has too little memory, or engines are missing.
            BundleError: a file of weights is too short.
        """

    def constants(self, machinery: Machinery) -> list[float] | None:
        """The gates' logits if they are the same for every token; None if they are not, or if kernels ask them."""


@dataclass(frozen=True, slots=True)
class PartitionForm:
    """A graph cut into partitions, which an engine runs.

    Attributes:
        cuda: The GPU.
        partitions: The graph.
        runner: What runs them.
        weights: All weights of the bundle.
        values: Memory for values between partitions.
    """

    cuda: Cuda
    partitions: Partitions
    runner: PartitionRunner
    weights: DeviceWeights
    values: SharedValues

    def put(self, spec: DecoderSpec, rows: int) -> Machinery:
        """See `GraphForm.put`."""
        cuda, partitions = self.cuda, self.partitions
        memory = GraphMemory(cuda, partitions, spec, rows, self.weights, self.values)
        stepper = Stepper(cuda, self.runner, partitions, memory)
        cache = GpuKvCache(cuda, memory, spec, rows, self.runner.kv_buckets() or (spec.max_tokens,))
        return Machinery(partitions, memory, stepper, cache)

    def constants(self, machinery: Machinery) -> list[float] | None:
        """See `GraphForm.constants`."""
        found = []
        assert isinstance(machinery.memory, GraphMemory)
        for gate in self.partitions.gates:
            value = np.zeros(1, np.float32)
            self.cuda.get(machinery.memory.weights[gate.logit], value)
            found.append(float(value[0]))
        return found


@dataclass(frozen=True, slots=True)
class KernelForm:
    """A graph whose steps are kernels of ours.

    Attributes:
        cuda: The GPU.
        step: The graph.
        weights: All weights of the bundle.
        shared: Memory that its graphs share.
        together: As `KernelStepper` has it.
        prompts: Makes what reads its long prompts; None for kernels alone.
    """

    cuda: Cuda
    step: DeviceStep
    weights: PackedWeights
    shared: SharedMemory
    together: str = ""
    prompts: PromptMaker | None = None

    def put(self, spec: DecoderSpec, rows: int) -> Machinery:
        """See `GraphForm.put`."""
        memory = KernelMemory(self.cuda, self.step, self.weights, self.shared, rows)
        cache = KvRows(self.cuda, spec, rows)
        memory.bytes["cache"] = cache.bytes
        stepper = KernelStepper(self.cuda, self.step, memory, self.shared.rows, spec.max_tokens, self.together)
        prompts = None if self.prompts is None else self.prompts(memory, stepper)
        return Machinery(self.step, memory, stepper, cache, prompts)

    def constants(self, machinery: Machinery) -> list[float] | None:
        """See `GraphForm.constants`."""
        return None
