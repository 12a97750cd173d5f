"""Kernels that were compiled once are read; what NVRTC says of wrong ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from adaptc.runtime.backends.cuda.driver.kernel_source import KernelSource
from adaptc.runtime.backends.cuda.driver.nvrtc import cubin, cubin_file, store_cubin
from adaptc.runtime.errors import EngineError

SOURCE = KernelSource('extern "C" __global__ void nothing() {}')


def test_what_was_kept_is_read_and_nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    store_cubin(SOURCE, 90, tmp_path / "engines" / "tensorrt")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert cubin(SOURCE, 90, tmp_path / "engines" / "tensorrt").startswith(b"\x7fELF")
    store_cubin(SOURCE, 90, tmp_path / "engines" / "tensorrt")
    with pytest.raises(EngineError, match="cuda-bindings: not installed"):
        cubin(SOURCE, 80, tmp_path / "engines" / "tensorrt")  # another GPU's


def test_what_is_wrong_with_a_kernel_is_one_line() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    with pytest.raises(EngineError, match=r"^nvrtc: .*error: [^\n]*$"):
        cubin(KernelSource("nonsense"), 90)


def test_macros_are_part_of_what_is_compiled_and_of_the_file_name(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    text = "#if SIZE == 7\n" + SOURCE.text + "\n#else\n#error no\n#endif\n"
    right, wrong = KernelSource(text, ("SIZE=7",)), KernelSource(text, ("SIZE=8",))
    assert cubin(right, 90).startswith(b"\x7fELF")
    with pytest.raises(EngineError, match="#error"):
        cubin(wrong, 90)
    assert cubin_file(right, 90, tmp_path) != cubin_file(wrong, 90, tmp_path)
