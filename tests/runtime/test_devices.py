"""Which device `load` picks: what a caller names, or a GPU if there is one that runs the bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from adaptc.runtime import loading
from adaptc.runtime.backends.backend import Backend
from adaptc.runtime.backends.cuda.driver.cuda import gpu_at_hand
from adaptc.runtime.backends.onnxruntime_cuda.backend import OnnxRuntimeCuda
from adaptc.runtime.bundle.folder import Bundle, open_bundle, write_bundle
from adaptc.runtime.load_options import LoadOptions
from tests.repo import ROOT

STORED = ROOT / "tests" / "stored" / "schema3" / "gated"


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that has steps; nobody reads them here."""
    whole = open_bundle(STORED)
    files: dict[str, Path | bytes] = {name: whole.read(name) for name in whole.manifest.files}
    return write_bundle(tmp_path_factory.mktemp("b") / "b", files | {"steps/lm.json": b"{}"}, whole.manifest)


def picked(bundle: Bundle, **options: Any) -> Backend:
    return loading._backend(bundle, loading.BACKENDS, LoadOptions(**options))


@pytest.mark.parametrize(
    ("options", "gpu"),
    [
        ({}, True),
        ({"batch": 4, "chunk": 8, "budget": 0.5}, True),
        ({"threads": 1}, False),
        ({"prefix_bytes": 0}, False),
        ({"routes": ["large"]}, False),
        ({"speculate": "auto"}, False),
        ({"device": "cpu"}, False),
    ],
)
def test_auto_is_a_gpu_unless_an_option_is_a_cpus(
    stepped: Bundle, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], gpu: bool
) -> None:
    monkeypatch.setattr(loading, "gpu_at_hand", lambda _: True)
    assert picked(stepped, **options).device == ("gpu" if gpu else "cpu")
    assert picked(open_bundle(STORED), **options).device == "cpu", "it has no steps"
    monkeypatch.setattr(loading, "gpu_at_hand", lambda _: False)
    assert picked(stepped, **options).device == "cpu"


@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("gpu", 0), ("cuda:0", 0), ("cuda:3", 3)])
def test_a_gpu_that_is_named_is_taken(stepped: Bundle, device: str, index: int) -> None:
    backend = picked(stepped, device=device)
    assert isinstance(backend, OnnxRuntimeCuda)
    assert (backend.index, backend.device) == (index, "gpu")


@pytest.mark.parametrize(
    ("count", "failed", "sm", "nvrtc", "there"),
    [
        (1, 0, (9, 0), 0, True),
        (2, 0, (8, 0), 0, True),
        (1, 0, (7, 5), 0, False),
        (0, 0, (9, 0), 0, False),
        (0, 100, (9, 0), 0, False),
        (1, 0, (9, 0), 5, False),
        (1, 0, (9, 0), None, False),
    ],
)
def test_a_gpu_is_at_hand(
    monkeypatch: pytest.MonkeyPatch, count: int, failed: int, sm: tuple[int, int], nvrtc: int | None, there: bool
) -> None:
    def version() -> tuple[int, int, int]:
        if nvrtc is None:
            raise RuntimeError("Failed to dlopen libnvrtc.so.13")
        return nvrtc, 13, 0

    bindings: Any = ModuleType("cuda.bindings")
    bindings.nvrtc = SimpleNamespace(nvrtcVersion=version)
    about = SimpleNamespace(major=sm[0], minor=sm[1])
    bindings.runtime = SimpleNamespace(
        cudaGetDeviceCount=lambda: (failed, count), cudaGetDeviceProperties=lambda _: (0, about)
    )
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    assert gpu_at_hand(80) is there
    assert gpu_at_hand() is (there or sm == (7, 5))


def test_without_bindings_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert not gpu_at_hand()
