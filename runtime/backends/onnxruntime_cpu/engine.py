"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from adaptc.runtime.backends.engine import Array, Arrays, BoundRun, check_array, check_complete
from adaptc.runtime.backends.host.memory import trim
from adaptc.runtime.backends.onnxruntime_cpu.cores import physical_cores
from adaptc.runtime.backends.onnxruntime_cpu.huge_pages import collapse_since, filled
from adaptc.runtime.backends.onnxruntime_cpu.packed import OUTPUT, with_packed
from adaptc.runtime.bundle.manifest import TensorSpec
from adaptc.runtime.errors import EngineError
from adaptc.runtime.model.decoder import cache_dtype

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
_CODED_CACHE = "its KV cache is int8", (1, 27)
"""The first onnxruntime whose attention computes with a cache of 8-bit codes on a CPU; 1.25 loads such a graph."""

_CODED_EXPERTS = "its experts are in 4 or 8 bits", (1, 31)
"""The first onnxruntime whose QMoE takes a router's decision, and kernels of MatMulNBits for experts."""

_QUIET = 4  # fatal messages only: errors are raised, and warnings concern the compiler


class OrtEngine:
    """One ONNX file, loaded."""

    def __init__(
        self, file: Path, threads: int | None = None, instead: bytes | None = None, profile: Path | None = None
    ) -> None:
        """Load a graph; weights that were packed for it are mapped from their file.

        Args:
            file: The ONNX file; its external data lies beside it.
            threads: Threads that work on one run; None for the physical cores.
            instead: Another ONNX graph over the same data, which is loaded in the place of the file's.
            profile: Beginning of the name of a JSON file that gets the time of each node once the engine is closed.

        Raises:
            EngineError: onnxruntime is not installed, or cannot load the file.
            BundleError: weights packed for it are damaged.
        """
        ort = onnxruntime()
        self._where = str(file)
        self._failures = _failures(ort)
        options = _options(ort, threads)
        self._profiled = profile is not None
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        graph = with_packed(file) if instead is None else instead
        if graph is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
        before = filled()
        self._session: Any = _session(ort, file, graph, options)
        if graph is not None:
            trim()
        collapse_since(before)
        self.inputs = tuple(_spec(tensor, file) for tensor in self._session.get_inputs())
        if cache_dtype(self.inputs) == "int8":
            _refuse_older(ort, file, *_CODED_CACHE)
        outputs = (tensor for tensor in self._session.get_outputs() if tensor.name != OUTPUT)
        self.outputs = tuple(_spec(tensor, file) for tensor in outputs)
        self._inputs = {spec.name: spec for spec in self.inputs}
        self._outputs = {spec.name: spec for spec in self.outputs}

    def bind(self, feeds: Arrays, outputs: Arrays) -> BoundRun:
        """See `Engine.bind`."""
        if self._session is None:
            raise EngineError(f"{self._where}: closed")
        check_complete(self.inputs, feeds)
        check_complete(self.outputs, outputs)
        run = _OrtRun(self._session, self._inputs, self._outputs, self._where, self._failures)
        run.rebind(feeds, outputs)
        return run

    def close(self) -> None:
        """See `Engine.close`."""
        if self._profiled and self._session is not None:
            self._session.end_profiling()
        self._session = None


class _OrtRun:
    """A bound run: pointers in an IOBinding, and the arrays that they point to."""

    def __init__(
        self,
        session: Any,
        inputs: dict[str, TensorSpec],
        outputs: dict[str, TensorSpec],
        where: str,
        failures: tuple[type[Exception], ...],
    ) -> None:
        self._run = session.run_with_iobinding
        self._binding = session.io_binding()
        self._inputs = inputs
        self._outputs = outputs
        self._where = where
        self._failures = failures
        self._keep: dict[str, Array] = {}

    def __call__(self) -> None:
        try:
            self._run(self._binding)
        except self._failures as error:
            raise EngineError(f"{self._where}: onnxruntime failed: {_one_line(error)}") from error

    def rebind(self, feeds: Arrays, outputs: Arrays) -> None:
        binding = self._binding
        for specs, arrays, bind in (
            (self._inputs, feeds, binding.bind_input),
            (self._outputs, outputs, binding.bind_output),
        ):
            for name, array in arrays.items():
                check_array(specs, name, array)
                bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
                self._keep[name] = array


def save_packed(file: Path, folder: Path) -> tuple[Path, Path]:
    """Load a graph and write it as ONNX Runtime optimized it, with its weights as the kernels packed them.

    Args:
        file: The ONNX file.
        folder: Where to write.

    Returns:
        The written graph and its data file; the external data of each weight name its packed blocks.

    Raises:
        EngineError: as `OrtEngine`.
    """
    ort = onnxruntime()
    options = _options(ort, 1)
    written, data = folder / file.name, folder / f"{file.stem}.data"
    options.optimized_model_filepath = str(written)
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", data.name)
    _session(ort, file, None, options)
    return written, data


def _options(ort: ModuleType, threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = physical_cores() if threads is None else threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    # Threads wait for the next node in a loop, and go on after a run: into that of another graph, whose threads they
    # then keep from the cores. Runs of two graphs in turns took up to twice as long, those of one graph as long as now.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _session(ort: ModuleType, file: Path, graph: bytes | None, options: Any) -> Any:
    """A session of a file, or of a graph that stands for it."""
    try:
        return ort.InferenceSession(graph or str(file), options, providers=["CPUExecutionProvider"])
    except _failures(ort) as error:
        if "GroupQueryAttention:1) has input size" in str(error):  # the scales of a cache of codes
            _refuse_older(ort, file, *_CODED_CACHE)
        if "QMoE" in str(error):
            _refuse_older(ort, file, *_CODED_EXPERTS)
        raise EngineError(f"{file}: onnxruntime cannot load it: {_one_line(error)}") from error


def _refuse_older(ort: ModuleType, file: Path, what: str, since: tuple[int, int]) -> None:
    """Refuse a graph that this onnxruntime is too old for.

    Raises:
        EngineError: it is.
    """
    if tuple(int(part) for part in ort.__version__.split(".")[:2]) < since:
        right = ".".join(map(str, since))
        raise EngineError(
            f"{file}: {what}, which onnxruntime {ort.__version__} does not compute; {right} or newer is right"
        )


def onnxruntime() -> ModuleType:
    """ONNX Runtime's Python package.

    Raises:
        EngineError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            "onnxruntime: not installed or not loadable; pip install 'adaptc[cpu]' installs it"
        ) from error
    module: ModuleType = onnxruntime
    return module


def _failures(ort: ModuleType) -> tuple[type[Exception], ...]:
    """The exceptions that onnxruntime raises; they have no common base class of their own."""
    own = vars(ort.capi.onnxruntime_pybind11_state).values()
    return (
        RuntimeError,
        ValueError,
        *(kind for kind in own if isinstance(kind, type) and issubclass(kind, Exception)),
    )


def _one_line(error: Exception) -> str:
    """The message without its "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : " and its later lines."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rpartition(" : ")[2].strip().rstrip(".")


def _spec(tensor: Any, file: Path) -> TensorSpec:
    if tensor.type not in _DTYPES:
        raise EngineError(f"{file}: {tensor.name} is {tensor.type}; known are: {', '.join(_DTYPES)}")
    shape = tuple(size if isinstance(size, int) else str(size) for size in tensor.shape)
    return TensorSpec(tensor.name, _DTYPES[tensor.type], shape)
