"""What GPU tests share: the mark, the reason to skip, and bundles with engines built on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.tensorrt.build import build_engines
from adaptc.runtime.backends.tensorrt.library import Trt
from adaptc.runtime.bundle.folder import Bundle, open_bundle
from adaptc.runtime.errors import EngineError

SIZES: dict[str, dict[str, Any]] = {
    "smollm2": {"batches": (1,), "chunk": 64},
    "routes": {"batches": (1, 4), "chunk": 8},
    "gated": {"batches": (1, 2), "chunk": 8},
    "tiny": {"batches": (1,), "chunk": 8},
    "views": {},
}
"""What engines are built for, by bundle."""


@pytest.fixture(scope="session")
def gpu() -> None:
    """Skip where there is no GPU, or no engine library for it."""
    try:
        Trt("tensorrt")
        Cuda().close()
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def folder(gpu: None, request: pytest.FixtureRequest) -> Path:
    """Where `python -m tests.gpu.prepare` wrote bundles and expectations."""
    folder: Path | None = request.config.getoption("--gpu-bundles")
    if folder is None:
        pytest.skip("no bundles: python -m tests.gpu.prepare DIR makes them, pytest --gpu-bundles DIR takes them")
    return folder.resolve()


@pytest.fixture(scope="session")
def built(folder: Path) -> Callable[[str], Bundle]:
    """A bundle by name, with the engines that its tests need; those that are there are kept."""

    def bundle(name: str) -> Bundle:
        if not (folder / name).is_dir():
            pytest.skip(f"{folder}: no {name}; python -m tests.gpu.prepare {folder} {name} makes it")
        opened = open_bundle(folder / name, verify=False)
        build_engines(opened, "tensorrt", mode="on_device", **SIZES[name])
        return opened

    return bundle
