"""What a GPU refuses, as one line that says the mend: on stand-ins for the libraries, since there is no GPU here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.tensorrt.build import _lack
from adaptc.runtime.backends.tensorrt.context import Context
from adaptc.runtime.backends.tensorrt.engines import EngineRecord
from adaptc.runtime.backends.tensorrt.library import Profile, Trt
from adaptc.runtime.errors import EngineError

Code = IntEnum(
    "Code",
    {
        "cudaSuccess": 0,
        "cudaErrorMemoryAllocation": 2,
        "cudaErrorInsufficientDriver": 35,
        "cudaErrorNoDevice": 100,
        "cudaErrorIllegalAddress": 700,
    },
)
"""CUDA's numbers."""


class Library(ModuleType):
    """Functions that do nothing, but for those that have an answer.

    Attributes:
        called: Their names, in order.
    """

    def __init__(self, name: str, answers: dict[str, Any]) -> None:
        super().__init__(name)
        self.answers, self.called = answers, list[str]()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*_: Any) -> Any:
            self.called.append(name)
            answer = self.answers.get(name, (Code.cudaSuccess, 4096))
            return answer.pop(0) if isinstance(answer, list) else answer

        return call


Install = Callable[..., Library]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a CUDA there that answers so."""

    def put(**answers: Any) -> Library:
        about = SimpleNamespace(name=b"Stand-in", major=9, minor=0, totalGlobalMem=1 << 30, multiProcessorCount=132)
        known = {"cudaDriverGetVersion": (0, 13000), "cudaGetDeviceProperties": (0, about)}
        runtime = Library("cuda.bindings.runtime", known | answers)
        bindings = ModuleType("cuda.bindings")
        bindings.runtime, bindings.driver = runtime, Library("cuda.bindings.driver", {})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
        return runtime

    return put


@pytest.mark.parametrize(
    ("answers", "line"),
    [
        (
            {"cudaDriverGetVersion": (0, 0)},
            "cuda: no NVIDIA driver here; install one, or load with device='cpu'",
        ),
        (
            {"cudaSetDevice": (Code.cudaErrorInsufficientDriver,)},
            (
                "cuda: cannot take the GPU: the driver is older than this CUDA; install a newer NVIDIA driver "
                "(cudaErrorInsufficientDriver)"
            ),
        ),
        (
            {"cudaSetDevice": (Code.cudaErrorNoDevice,)},
            (
                "cuda: cannot take the GPU: no GPU is visible here; run on a machine with one, or with device='cpu' "
                "(cudaErrorNoDevice)"
            ),
        ),
    ],
)
def test_no_gpu_to_take(install: Install, answers: dict[str, Any], line: str) -> None:
    install(**answers)
    with pytest.raises(EngineError) as error:
        Cuda()
    assert str(error.value) == line


def test_no_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(EngineError, match=r"^cuda-bindings: not installed \(.*\)"):
        Cuda()


def test_out_of_memory_says_so_and_what_was_taken_is_freed(install: Install) -> None:
    library = install(cudaMalloc=[(0, 4096), (Code.cudaErrorMemoryAllocation, 0)])
    cuda = Cuda()
    cuda.alloc(100)
    with pytest.raises(EngineError) as error:
        cuda.alloc(3 << 20)
    assert str(error.value) == (
        "cuda: cannot allocate 3.0 MiB: out of GPU memory; a smaller batch, fewer max_tokens or an emptier GPU is "
        "needed (cudaErrorMemoryAllocation)"
    )
    freed = library.called.count("cudaFree")
    cuda.close()
    assert library.called.count("cudaFree") == freed + 1
    cuda.close()
    assert library.called.count("cudaFree") == freed + 1, "a second time frees nothing"


def test_a_graph_that_has_no_memory(install: Install) -> None:
    library = install(cudaGraphInstantiate=(Code.cudaErrorMemoryAllocation, 0))
    with pytest.raises(EngineError, match=r"^cuda: cannot make a graph ready: out of GPU memory"):
        Cuda().end_capture(object())
    assert library.called.count("cudaGraphDestroy") == 1, "what was captured is lost, and freed"


def test_a_fault_while_a_step_runs(install: Install) -> None:
    install(cudaEventSynchronize=(Code.cudaErrorIllegalAddress,))
    with pytest.raises(EngineError, match=r"^cuda: cannot run: .*this session cannot go on, load it again"):
        Cuda().wait(object())


class Refusing(Trt):
    """A library whose builder, and whose runtime, give up with a message."""

    def __init__(self, message: str) -> None:
        self.flavour, self.version, self._log = "tensorrt", "8.6.0", SimpleNamespace(errors=[message])  # type: ignore[assignment]
        self.module = SimpleNamespace(BuilderFlag=SimpleNamespace(FP16=0))  # type: ignore[assignment]

    def _build(self, *_: Any) -> None:
        return None

    def runtime(self) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda _: None)


def test_out_of_memory_while_building() -> None:
    with pytest.raises(EngineError) as error:
        Refusing("Requested amount of GPU memory\n(1024 bytes) could not be allocated.").build(b"", Profile.fixed({}))
    assert str(error.value) == (
        "tensorrt 8.6.0: cannot build the engine: Requested amount of GPU memory (1024 bytes) could not be allocated.; "
        "free some memory of the GPU"
    )


@pytest.mark.parametrize(
    ("free", "sm", "said"),
    [(4 << 20, (), "; 4 MB of the GPU's memory are free: free some more"), (2 << 30, (), ""), (4 << 20, (86,), "")],
)
def test_a_builder_that_failed_on_a_full_gpu(
    free: int, sm: tuple[int, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(free_bytes=lambda: free, close=lambda: None)
    monkeypatch.setattr("adaptc.runtime.backends.cuda.driver.cuda.Cuda", lambda: full)
    assert _lack(sm) == said


@pytest.mark.parametrize(("reason", "line"), [("1: ", "it gives no reason"), ("1: \n2: a shape", "1: 2: a shape")])
def test_a_builder_that_says_little(reason: str, line: str) -> None:
    with pytest.raises(EngineError) as error:
        Refusing(reason).build(b"", Profile.fixed({}))
    assert str(error.value) == f"tensorrt 8.6.0: cannot build the engine: {line}"


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("magicTag does not match", "p.plan: tensorrt cannot load it: magicTag does not match"),
        ("out of memory", "p.plan: tensorrt cannot load it: out of memory; free some memory of the GPU"),
    ],
)
def test_an_engine_that_cannot_be_loaded(reason: str, line: str) -> None:
    folder: Any = SimpleNamespace(plan=lambda _: "p.plan", read=lambda _: b"")
    record = EngineRecord("", "", "tensorrt", "8.6.0", "", (90,), {}, "", 0, 0.0, ())
    trt = Refusing(reason)
    with pytest.raises(EngineError) as error:
        Context(trt, trt.runtime(), folder, record)
    assert str(error.value) == line
