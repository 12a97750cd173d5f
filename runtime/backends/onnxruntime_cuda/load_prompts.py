"""From a bundle's prompt graphs to what reads long prompts on this machine's GPU, if ONNX Runtime can."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.kernel_steps.memory import KernelMemory, SharedMemory
from adaptc.runtime.backends.cuda.kernel_steps.packed_weights import PackedWeights
from adaptc.runtime.backends.cuda.kernel_steps.stepper import KernelStepper
from adaptc.runtime.backends.onnxruntime_cuda.prompts import PromptLayers, PromptMemory
from adaptc.runtime.backends.onnxruntime_cuda.sessions import (
    OrtSessions,
    PromptSession,
    PromptSessions,
    onnxruntime_gpu,
)
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.gpu_steps.device_prompt import PromptPieces
from adaptc.runtime.bundle.gpu_steps.device_step import DeviceStep
from adaptc.runtime.bundle.names import prompt_file
from adaptc.runtime.errors import BundleError, EngineError

MOST_TOKENS = 2048
"""Most tokens of a piece of a prompt: more would take memory, and be no faster."""


@dataclass(frozen=True, slots=True)
class LoadedPrompts:
    """How one graph of a bundle reads long prompts.

    Attributes:
        pieces: The calls.
        sessions: Their graphs, loaded, by name.
    """

    pieces: PromptPieces
    sessions: Mapping[str, PromptSession]

    def close(self) -> None:
        """Give back what the engine took."""
        for session in self.sessions.values():
            session.close()


@dataclass(frozen=True, slots=True)
class ReaderMaker:
    """Makes what reads a graph's prompts; see `PromptMaker`.

    Attributes:
        cuda: The GPU.
        step: The graph's step.
        loaded: Its prompts.
        weights: All weights of the bundle.
        memory: What prompts of all graphs use.
    """

    cuda: Cuda
    step: DeviceStep
    loaded: LoadedPrompts
    weights: PackedWeights
    memory: PromptMemory

    def __call__(self, memory: KernelMemory, stepper: KernelStepper) -> PromptLayers:
        """See `PromptMaker`."""
        pieces, sessions = self.loaded.pieces, self.loaded.sessions
        return PromptLayers(self.cuda, self.step, pieces, sessions, self.weights, self.memory, (memory, stepper))


def prompt_engine(bundle: Bundle, index: int) -> OrtSessions | None:
    """ONNX Runtime on a GPU; None, with a warning, if it is not installed, which only long prompts miss.

    Args:
        bundle: Whose prompts are read.
        index: Which of the machine's GPUs.
    """
    try:
        return OrtSessions(onnxruntime_gpu(), index)
    except EngineError as error:
        _warn(bundle, error)
        return None


def read_prompts(bundle: Bundle, steps: Mapping[str, DeviceStep]) -> dict[str, PromptPieces]:
    """How each graph reads long prompts; {} unless all have graphs for them.

    Raises:
        BundleError: a file is damaged.
    """
    if not all(bundle.has(prompt_file(name)) for name in steps):
        return {}
    found = {}
    for name, step in steps.items():
        file = prompt_file(name)
        try:
            found[name] = PromptPieces.from_json(bundle.read(file), step)
        except BundleError as error:
            raise BundleError(f"{bundle.path / file}: {error}") from error
        for graph in found[name].graphs.values():
            if not bundle.has(graph.file):
                raise BundleError(f"{bundle.path / file}: {graph.file!r} is not among the bundle's files")
    return found


def load_prompts(
    bundle: Bundle, steps: Mapping[str, DeviceStep], engine: PromptSessions | None, stream: Any
) -> dict[str, LoadedPrompts]:
    """The graphs of a bundle's prompts, loaded; {} if it has none, or, with a warning, if the engine cannot load them.

    Args:
        bundle: The bundle.
        steps: Its steps, by name.
        engine: What loads them; None for {}.
        stream: In whose order they run.

    Raises:
        BundleError: a file is damaged.
    """
    if engine is None:
        return {}
    found = {}
    for name, pieces in read_prompts(bundle, steps).items():
        try:
            sessions = {
                piece: engine.open(bundle.read(graph.file), str(bundle.path / graph.file), stream)
                for piece, graph in pieces.graphs.items()
            }
        except EngineError as error:
            _warn(bundle, error)
            return {}
        found[name] = LoadedPrompts(pieces, sessions)
    return found


def prompt_makers(
    cuda: Cuda,
    steps: Mapping[str, DeviceStep],
    loaded: Mapping[str, LoadedPrompts],
    weights: PackedWeights,
    tokens: int,
    shared: SharedMemory,
) -> dict[str, ReaderMaker]:
    """What makes a reader of each graph's prompts, over memory that all share, which is counted in `shared`.

    Args:
        cuda: The GPU.
        steps: The steps, by name.
        loaded: Their prompts, by name; {} takes no memory.
        weights: All weights of the bundle.
        tokens: Most tokens of a piece of a prompt.
        shared: Memory of the steps.

    Raises:
        EngineError: the GPU has too little memory.
    """
    if not loaded:
        return {}
    memory = PromptMemory.of(cuda, [(steps[name], each.pieces) for name, each in loaded.items()], tokens)
    shared.bytes += memory.bytes
    return {name: ReaderMaker(cuda, steps[name], each, weights, memory) for name, each in loaded.items()}


def _warn(bundle: Bundle, error: EngineError) -> None:
    warnings.warn(f"{bundle.path}: long prompts are read by slower kernels: {error}", stacklevel=4)
