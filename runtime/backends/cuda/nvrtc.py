"""CUDA C compiled for a GPU by NVRTC; what `adaptc build` compiled lies beside the engines and is only read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from adaptc.runtime.bundle.replace import write_whole
from adaptc.runtime.errors import EngineError


def place(source: str, sm: int, folder: Path) -> Path:
    """The file of a source's code for a compute capability."""
    return folder / f"{hashlib.sha256(f'{sm} {source}'.encode()).hexdigest()[:24]}.cubin"


def compiled(source: str, sm: int, folder: Path | None = None) -> bytes:
    """Code for a GPU: as it lies in the folder, or compiled.

    Args:
        source: CUDA C.
        sm: Compute capability, 90 for 9.0.
        folder: Of engines; None to compile.

    Raises:
        EngineError: NVRTC refuses it, or is not installed.
    """
    file = place(source, sm, folder) if folder is not None else None
    if file is not None and file.exists():
        return file.read_bytes()
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise EngineError(f"cuda-bindings: not installed ({error}); pip install 'adaptc[tensorrt]'") from error
    try:
        program = _got(nvrtc.nvrtcCreateProgram(source.encode(), b"adaptc.cu", 0, [], []))
    except RuntimeError as error:  # the library is looked for when it is first called
        raise EngineError(f"nvrtc: not loadable ({error}); pip install nvidia-cuda-nvrtc") from error
    options = [f"--gpu-architecture=sm_{sm}".encode(), b"--std=c++17"]
    if int(nvrtc.nvrtcCompileProgram(program, len(options), options)[0]) != 0:
        log = b" " * _got(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise EngineError(f"nvrtc: {' '.join(log.decode(errors='replace').split())[:300]}")
    code: bytes = b" " * _got(nvrtc.nvrtcGetCUBINSize(program))
    _got(nvrtc.nvrtcGetCUBIN(program, code))
    nvrtc.nvrtcDestroyProgram(program)
    return code


def keep(source: str, sm: int, folder: Path) -> None:
    """Compile a source into a folder, unless it is there.

    Raises:
        EngineError: as `compiled`; or the file cannot be written.
    """
    file = place(source, sm, folder)
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, compiled(source, sm))


def _got(result: Any) -> Any:
    """What a call of NVRTC gave."""
    code, *values = result
    if int(code) != 0:
        raise EngineError(f"nvrtc: {getattr(code, 'name', code)}")
    return values[0] if values else None
