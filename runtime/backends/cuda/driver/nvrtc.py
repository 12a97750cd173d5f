"""CUDA C compiled for a GPU by NVRTC; what `adaptc build` compiled lies beside the engines and is only read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from adaptc.runtime.backends.cuda.driver.kernel_source import KernelSource
from adaptc.runtime.bundle.built import add_built, read_built
from adaptc.runtime.bundle.files.replace import write_whole
from adaptc.runtime.errors import BundleError, EngineError


def cubin_file(source: KernelSource, sm: int, folder: Path) -> Path:
    """The file of a source's code for a compute capability."""
    read = " ".join((str(sm), *source.defines, source.text))
    return folder / f"{hashlib.sha256(read.encode()).hexdigest()[:24]}.cubin"


def options(source: KernelSource, sm: int) -> list[bytes]:
    """What NVRTC is called with."""
    defines = (f"--define-macro={define}" for define in source.defines)
    return [option.encode() for option in (f"--gpu-architecture=sm_{sm}", "--std=c++17", *defines)]


def cubin(source: KernelSource, sm: int, folder: Path | None = None) -> bytes:
    """Code for a GPU: read from the folder, or compiled.

    Args:
        source: CUDA C.
        sm: Compute capability, 90 for 9.0.
        folder: Where a bundle's engines lie, `engines/FLAVOUR`; None to compile in any case.

    Raises:
        EngineError: NVRTC refuses the source, or is not installed.
    """
    if folder is not None and (kept := _kept(cubin_file(source, sm, folder))) is not None:
        return kept
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise EngineError(f"cuda-bindings: not installed ({error}); pip install 'adaptc[gpu]'") from error
    try:
        program = _check(nvrtc.nvrtcCreateProgram(source.text.encode(), b"adaptc.cu", 0, [], []))
    except RuntimeError as error:  # the library is looked for when it is first called
        raise EngineError(f"nvrtc: not loadable ({error}); pip install 'adaptc[gpu]'") from error
    given = options(source, sm)
    if int(nvrtc.nvrtcCompileProgram(program, len(given), given)[0]) != 0:
        log = b" " * _check(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise EngineError(f"nvrtc: {' '.join(log.decode(errors='replace').split())[:300]}")
    code: bytes = b" " * _check(nvrtc.nvrtcGetCUBINSize(program))
    _check(nvrtc.nvrtcGetCUBIN(program, code))
    nvrtc.nvrtcDestroyProgram(program)
    return code


def store_cubin(source: KernelSource, sm: int, folder: Path) -> None:
    """Compile a source into a folder, unless its code is there.

    Raises:
        EngineError: as `cubin`; or the file cannot be written.
    """
    file = cubin_file(source, sm, folder)
    if _kept(file) is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, cubin(source, sm))
        add_built(_bundle(file), (file.relative_to(_bundle(file)).as_posix(),))


def _bundle(file: Path) -> Path:
    """The bundle of `engines/FLAVOUR/KEY.cubin`."""
    return file.parents[2]


def _kept(file: Path) -> bytes | None:
    """Code that was compiled before, if it is there and as it was."""
    try:
        return read_built(_bundle(file), file.relative_to(_bundle(file)).as_posix())
    except BundleError:  # it is compiled again
        return None


def _check(result: Any) -> Any:
    """The value that a call of NVRTC returned; EngineError if it failed."""
    code, *values = result
    if int(code) != 0:
        raise EngineError(f"nvrtc: {getattr(code, 'name', code)}")
    return values[0] if values else None
