"""Kernels that were compiled once are read; what NVRTC says of wrong ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from adaptc.runtime.backends.cuda.nvrtc import compiled, keep
from adaptc.runtime.errors import EngineError

SOURCE = 'extern "C" __global__ void nothing() {}'


def test_what_was_kept_is_read_and_nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    keep(SOURCE, 90, tmp_path / "engines")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert compiled(SOURCE, 90, tmp_path / "engines").startswith(b"\x7fELF")
    keep(SOURCE, 90, tmp_path / "engines")
    with pytest.raises(EngineError, match="cuda-bindings: not installed"):
        compiled(SOURCE, 80, tmp_path / "engines")  # another GPU's


def test_what_is_wrong_with_a_kernel_is_one_line() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    with pytest.raises(EngineError, match=r"^nvrtc: .*error: [^\n]*$"):
        compiled("nonsense", 90)
