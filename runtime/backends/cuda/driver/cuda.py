"""The calls of CUDA that a session makes, each checked; nothing is imported before the first session asks for a GPU.

Everything that is allocated or created is remembered and freed by `close`, also after an error.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.cuda.driver.device import Device
from adaptc.runtime.backends.cuda.driver.kernel_source import KernelSource
from adaptc.runtime.backends.cuda.driver.nvrtc import cubin
from adaptc.runtime.errors import EngineError

Array = npt.NDArray[Any]

_MENDS = {
    2: "out of GPU memory; a smaller batch, fewer max_tokens or an emptier GPU is needed",
    35: "the driver is older than this CUDA; install a newer NVIDIA driver",
    100: "no GPU is visible here; run on a machine with one, or with device='cpu'",
    209: "there is no code for this GPU; build the engines on it: adaptc build BUNDLE",
    700: "the GPU read or wrote memory it may not; this session cannot go on, load it again",
}
"""What to do about an error, by CUDA's number."""

_EARLY_SM = 90
"""Compute capability from which a kernel may begin before the one before it has ended."""


def gpu_at_hand(least_sm: int = 0) -> bool:
    """Whether a session may take the first GPU: there are `cuda-bindings`, NVRTC, a driver and a new GPU.

    Args:
        least_sm: The lowest compute capability that counts as new, 80 for 8.0.
    """
    try:
        from cuda.bindings import nvrtc, runtime

        versions = int(nvrtc.nvrtcVersion()[0]) == 0  # a library that lacks is an error when it is first called
        failed, count = runtime.cudaGetDeviceCount()
        if not versions or int(failed) or int(count) == 0:
            return False
        failed, about = runtime.cudaGetDeviceProperties(0)
    except (ImportError, OSError, RuntimeError):
        return False
    return int(failed) == 0 and about.major * 10 + about.minor >= least_sm


class Cuda:
    """One GPU, as one session uses it.

    Attributes:
        device: What it is.
    """

    def __init__(self, index: int = 0, cubins: Path | None = None) -> None:
        """Take a GPU.

        Args:
            index: Which.
            cubins: The folder where kernels may lie compiled.

        Raises:
            EngineError: no cuda-bindings, no driver, or no such GPU.
        """
        try:
            from cuda.bindings import driver, runtime
        except ImportError as error:
            raise EngineError(f"cuda-bindings: not installed ({error}); pip install 'adaptc[gpu]'") from error
        self._rt, self._driver = runtime, driver
        version = self._check(runtime.cudaDriverGetVersion(), "look for a driver")
        if version == 0:
            raise EngineError("cuda: no NVIDIA driver here; install one, or load with device='cpu'")
        self._check(runtime.cudaSetDevice(index), "take the GPU")
        self._check(runtime.cudaFree(0), "start the GPU")
        about = self._check(runtime.cudaGetDeviceProperties(index), "ask about the GPU")
        name = about.name.decode() if isinstance(about.name, bytes) else str(about.name)
        self.device = Device(
            name, about.major * 10 + about.minor, version, about.totalGlobalMem, about.multiProcessorCount
        )
        self._cubins = cubins
        self._memory: set[int] = set()
        self._pinned: dict[int, int] = {}
        self._streams: list[Any] = []
        self._events: list[Any] = []
        self._graphs: list[tuple[Any, Any]] = []
        self._modules: dict[KernelSource, Any] = {}

    # Memory

    def alloc(self, size: int) -> int:
        """The address of `size` bytes of zeros on the GPU; at least one byte is taken."""
        size = max(size, 1)
        address = int(self._check(self._rt.cudaMalloc(size), f"allocate {size / 2**20:.1f} MiB"))
        self._memory.add(address)
        self._check(self._rt.cudaMemset(address, 0, size), "clear memory")
        return address

    def free(self, address: int) -> None:
        """Give back what `alloc` gave."""
        self._memory.discard(address)
        self._check(self._rt.cudaFree(address), "free memory")

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> tuple[int, Array]:
        """Memory of the host that the GPU writes into: its address for both, and an array over it, zeros."""
        size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        address = int(self._check(self._rt.cudaHostAlloc(size, self._rt.cudaHostAllocMapped), "pin memory"))
        self._pinned[address] = size
        raw = (ctypes.c_byte * size).from_address(address)
        array = np.frombuffer(memoryview(raw), np.dtype(dtype), int(np.prod(shape))).reshape(shape)
        array[...] = 0
        return address, array

    def put(self, address: int, array: Array) -> None:
        """Copy an array to the GPU and wait for it."""
        array = np.ascontiguousarray(array)
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(self._rt.cudaMemcpy(address, array.ctypes.data, array.nbytes, kind), "copy to the GPU")

    def get(self, address: int, array: Array) -> None:
        """Copy from the GPU into an array and wait for it."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._check(self._rt.cudaMemcpy(array.ctypes.data, address, array.nbytes, kind), "copy from the GPU")

    def put_async(self, address: int, array: Array, stream: Any) -> None:
        """Copy a small array to the GPU in the stream's order; the array may change once this returns."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(self._rt.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, stream), "copy to the GPU")

    def copy_rows(self, to: tuple[int, int], source: tuple[int, int], width: int, rows: int, stream: Any) -> None:
        """Copy `rows` rows of `width` bytes; both places are (address, bytes from row to row)."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        copied = self._rt.cudaMemcpy2DAsync(to[0], to[1], source[0], source[1], width, rows, kind, stream)
        self._check(copied, "copy on the GPU")

    def clear(self, address: int, size: int, stream: Any) -> None:
        """Set bytes to zero in the stream's order."""
        self._check(self._rt.cudaMemsetAsync(address, 0, size, stream), "clear memory")

    def free_bytes(self) -> int:
        """Memory of the GPU that nobody has taken."""
        return int(self._check(self._rt.cudaMemGetInfo(), "ask for free memory")[0])

    # Streams and time

    def stream(self) -> Any:
        """A new stream that waits for no other."""
        flags = self._rt.cudaStreamNonBlocking
        self._streams.append(self._check(self._rt.cudaStreamCreateWithFlags(flags), "create a stream"))
        return self._streams[-1]

    def event(self, *, timing: bool = False) -> Any:
        """A new event."""
        flags = 0 if timing else self._rt.cudaEventDisableTiming
        self._events.append(self._check(self._rt.cudaEventCreateWithFlags(flags), "create an event"))
        return self._events[-1]

    def record(self, event: Any, stream: Any) -> None:
        """Let the event happen when the stream comes to this place."""
        self._check(self._rt.cudaEventRecord(event, stream), "record an event")

    def wait(self, event: Any) -> None:
        """Wait until the event has happened."""
        self._check(self._rt.cudaEventSynchronize(event), "run")

    def sync(self, stream: Any) -> None:
        """Wait until the stream has done all it was given."""
        self._check(self._rt.cudaStreamSynchronize(stream), "run")

    def seconds(self, begin: Any, end: Any) -> float:
        """Time between two events."""
        return float(self._check(self._rt.cudaEventElapsedTime(begin, end), "take the time")) / 1e3

    # Kernels

    def kernels(self, source: KernelSource, names: Sequence[str]) -> dict[str, Any]:
        """Load kernels by name; the source is compiled if its code is not in the folder of compiled kernels.

        Raises:
            EngineError: NVRTC refuses it, or is not installed.
        """
        module = self._modules.get(source)
        if module is None:
            code = cubin(source, self.device.sm, self._cubins)
            module = self._modules[source] = self._check(self._driver.cuModuleLoadData(code), "load kernels")
        return {
            name: self._check(self._driver.cuModuleGetFunction(module, name.encode()), f"find {name}") for name in names
        }

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        threads: int,
        args: Sequence[tuple[Any, Any]],
        stream: Any,
        *,
        early: bool = False,
        shared: int = 0,
    ) -> None:
        """Start a kernel.

        Args:
            kernel: From `kernels`.
            grid: Blocks, up to three numbers.
            threads: Threads of each block.
            args: (value, ctypes type) for each parameter.
            stream: In whose order it runs.
            early: Whether it may begin before the kernel launched before it has ended; only for kernels that wait
                themselves, by `after_previous` in `kernels/common.cu`.
            shared: Bytes of shared memory of a block beside what the kernel declares.
        """
        driver = self._driver
        values, kinds = tuple(value for value, _ in args), tuple(kind for _, kind in args)
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = (*grid, 1, 1)[:3]
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        if shared:  # more than 48 KB, with what the kernel declares, must be asked for
            most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._check(driver.cuFuncSetAttribute(kernel, most, shared), "take shared memory")
        config.sharedMemBytes = shared
        config.hStream = driver.CUstream(int(stream))
        if early and self.device.sm >= _EARLY_SM:
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            config.attrs, config.numAttrs = [attribute], 1
        self._check(driver.cuLaunchKernelEx(config, kernel, (values, kinds), 0), "start a kernel")

    # Graphs

    def begin_capture(self, stream: Any) -> None:
        """From here on, what the stream is given is kept as a graph instead of being run."""
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        self._check(self._rt.cudaStreamBeginCapture(stream, mode), "begin a capture")

    def end_capture(self, stream: Any) -> Any:
        """The captured graph, ready to be launched."""
        graph = self._check(self._rt.cudaStreamEndCapture(stream), "capture")
        try:
            run = self._check(self._rt.cudaGraphInstantiate(graph, 0), "make a graph ready")
        except EngineError:  # of memory, say: nobody else knows the graph
            self._rt.cudaGraphDestroy(graph)
            raise
        self._graphs.append((graph, run))
        return run

    def drop_capture(self, stream: Any) -> None:
        """End a capture that failed; what was captured is lost."""
        result = self._rt.cudaStreamEndCapture(stream)
        if int(result[0]) == 0 and result[1] is not None:
            self._rt.cudaGraphDestroy(result[1])
        self._rt.cudaGetLastError()

    def handle(self, stream: Any) -> int:
        """A condition of the graph that `stream` captures; kernels set it, false until then."""
        graph = self._capture(stream)[0]
        return int(self._check(self._rt.cudaGraphConditionalHandleCreate(graph, 0, 0), "create a condition"))

    def branch(self, stream: Any, handle: int, bodies: int) -> list[Any]:
        """A conditional node: its first body runs if the condition is true, its second one if not.

        Args:
            stream: That captures.
            handle: The condition.
            bodies: 1 or 2; 2 needs a driver of CUDA 12.8.

        Returns:
            The empty bodies, for `begin_body`.
        """
        rt = self._rt
        graph, before = self._capture(stream)
        given = rt.cudaGraphNodeParams()
        given.type = rt.cudaGraphNodeType.cudaGraphNodeTypeConditional
        given.conditional.handle = rt.cudaGraphConditionalHandle(handle)
        given.conditional.type = rt.cudaGraphConditionalNodeType.cudaGraphCondTypeIf
        given.conditional.size = bodies
        node = self._check(rt.cudaGraphAddNode(graph, before, None, len(before), given), "add a condition")
        inner = [given.conditional.phGraph_out[index] for index in range(bodies)]
        flags = rt.cudaStreamUpdateCaptureDependenciesFlags.cudaStreamSetCaptureDependencies
        self._check(rt.cudaStreamUpdateCaptureDependencies(stream, [node], None, 1, flags), "go on after a condition")
        return inner

    def begin_body(self, stream: Any, body: Any) -> None:
        """Capture into the body of a conditional node."""
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        self._check(self._rt.cudaStreamBeginCaptureToGraph(stream, body, None, None, 0, mode), "capture a body")

    def end_body(self, stream: Any) -> None:
        """The body is complete."""
        self._check(self._rt.cudaStreamEndCapture(stream), "capture a body")

    def run(self, graph: Any, stream: Any) -> None:
        """Launch a captured graph."""
        self._check(self._rt.cudaGraphLaunch(graph, stream), "launch a graph")

    def drop(self, run: Any) -> None:
        """Free a captured graph."""
        for pair in [pair for pair in self._graphs if pair[1] is run]:
            self._graphs.remove(pair)
            self._rt.cudaGraphExecDestroy(pair[1])
            self._rt.cudaGraphDestroy(pair[0])

    def close(self) -> None:
        """Free all that is left; errors are ignored, since the GPU may have failed already."""
        rt = self._rt
        rt.cudaDeviceSynchronize()
        for graph, run in self._graphs:
            rt.cudaGraphExecDestroy(run)
            rt.cudaGraphDestroy(graph)
        for event in self._events:
            rt.cudaEventDestroy(event)
        for stream in self._streams:
            rt.cudaStreamDestroy(stream)
        for address in self._memory:
            rt.cudaFree(address)
        for address in self._pinned:
            rt.cudaFreeHost(address)
        for module in self._modules.values():
            self._driver.cuModuleUnload(module)
        for kept in (self._graphs, self._events, self._streams, self._memory, self._pinned, self._modules):
            kept.clear()
        rt.cudaGetLastError()

    def _capture(self, stream: Any) -> tuple[Any, Any]:
        """The graph that a stream captures, and the nodes that its next one will follow."""
        found = self._rt.cudaStreamGetCaptureInfo(stream)
        self._check(found[:1], "look at a capture")
        return found[3], list(found[4] or ())

    def _check(self, result: Any, doing: str) -> Any:
        """What a call gave; EngineError with what to do if it failed."""
        code, *values = result
        if int(code) != 0:
            mend = _MENDS.get(int(code), "")
            name = getattr(code, "name", str(code))
            self._rt.cudaGetLastError()
            raise EngineError(f"cuda: cannot {doing}: {mend or name}" + (f" ({name})" if mend else ""))
        return values[0] if len(values) == 1 else values
