"""ONNX Runtime on an NVIDIA GPU: graphs that read and write memory of ours, in the order of a stream of ours."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from adaptc.runtime.errors import EngineError

PROVIDER = "CUDAExecutionProvider"

_QUIET = 4  # fatal messages only: errors are raised
_ERRORS = 3
_MEND = "pip install 'adaptc[gpu]'"


@dataclass(frozen=True, slots=True)
class Bound:
    """A tensor at an address.

    Attributes:
        address: Where it lies.
        dtype: As NumPy names it.
        shape: Its sizes.
        on_host: Whether that is the host's memory; if not, the GPU's.
    """

    address: int
    dtype: str
    shape: tuple[int, ...]
    on_host: bool = False


class PromptSession(Protocol):
    """A loaded graph."""

    def run(self, inputs: Sequence[Bound], outputs: Sequence[Bound]) -> None:
        """Run it behind all that the stream has; it may not be done on return.

        Args:
            inputs: In the graph's order.
            outputs: In the graph's order.

        Raises:
            EngineError: the engine failed.
        """

    def close(self) -> None:
        """Give back what the engine took; before the stream ends."""


class PromptSessions(Protocol):
    """What loads graphs."""

    def open(self, graph: bytes, where: str, stream: Any) -> PromptSession:
        """Load a graph whose runs go into a stream.

        Args:
            graph: ONNX without weights.
            where: What it is called in messages.
            stream: The stream.

        Raises:
            EngineError: the engine cannot load it.
        """


def onnxruntime_gpu() -> ModuleType:
    """The module `onnxruntime` with its CUDA provider, and the CUDA libraries of pip's packages.

    Raises:
        EngineError: it is not installed, or is one for CPUs.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise EngineError(f"onnxruntime-gpu: not installed ({error}); {_MEND}") from error
    # It says on standard output what it does not find; whether that is needed shows when a graph is loaded.
    with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()
    if PROVIDER not in ort.get_available_providers():
        raise EngineError(f"onnxruntime: {ort.__version__} is for CPUs; {_MEND}")
    return ort  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class OrtSessions:
    """ONNX Runtime's CUDA provider; see `PromptSessions`.

    Attributes:
        ort: The module.
        index: Which of the machine's GPUs.
    """

    ort: Any
    index: int = 0

    def open(self, graph: bytes, where: str, stream: Any) -> OrtSession:
        """See `PromptSessions.open`."""
        options = self.ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = _QUIET, 1
        of_provider = {
            "device_id": str(self.index),
            "user_compute_stream": str(int(stream)),
            "has_user_compute_stream": "1",
            "arena_extend_strategy": "kSameAsRequested",  # powers of two would take up to twice as much
        }
        self.ort.set_default_logger_severity(_ERRORS)  # it warns of a plugin that is not there, and needs none
        try:
            session = self.ort.InferenceSession(graph, options, providers=[(PROVIDER, of_provider)])
            providers = session.get_providers()
        except Exception as error:  # onnxruntime raises many kinds, RuntimeError among them
            raise EngineError(f"{where}: onnxruntime cannot load it: {_one_line(error)}") from error
        if PROVIDER not in providers:
            raise EngineError(f"{where}: onnxruntime lacks libraries of CUDA or cuDNN; {_MEND}")
        return OrtSession(session, self.ort.RunOptions(), where, self.index)


class OrtSession:
    """One graph, loaded; see `PromptSession`."""

    def __init__(self, session: Any, options: Any, where: str, index: int) -> None:
        self._session, self._options, self._where, self._index = session, options, where, index
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._inputs = [each.name for each in session.get_inputs()]
        self._outputs = [each.name for each in session.get_outputs()]

    def run(self, inputs: Sequence[Bound], outputs: Sequence[Bound]) -> None:
        """See `PromptSession.run`."""
        try:
            binding = self._session.io_binding()
            for name, bound in zip(self._inputs, inputs, strict=True):
                binding.bind_input(name, *self._place(bound))
            for name, bound in zip(self._outputs, outputs, strict=True):
                binding.bind_output(name, *self._place(bound))
            self._session.run_with_iobinding(binding, self._options)
        except Exception as error:
            raise EngineError(f"{self._where}: onnxruntime failed: {_one_line(error)}") from error

    def close(self) -> None:
        """See `PromptSession.close`."""
        self._session = None

    def _place(self, bound: Bound) -> tuple[Any, ...]:
        device = ("cpu", 0) if bound.on_host else ("cuda", self._index)
        return (*device, np.dtype(bound.dtype).type, list(bound.shape), bound.address)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
