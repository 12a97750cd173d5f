"""What decides, beside the input, what a compile gives: adaptc's code and the libraries it calls."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path

from adaptc import __version__

LIBRARIES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")
"""Libraries whose version may change what a compile gives."""

CODE = frozenset({".py", ".cu", ".txt"})
"""Endings of the files that are adaptc's code."""


def versions() -> dict[str, str]:
    """Versions of adaptc and of every library that takes part in a compile."""
    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"adaptc": f"{__version__}+{_code_hash()}"} | libraries


def _code_hash() -> str:
    """Eight digits that change when adaptc's code does, so that a developer's cache is never stale.

    All of the code is hashed, also what cannot change a bundle: a list of what can would have to be kept right.
    Only codes of matrices and translations of layers outlive an edit elsewhere: their keys hash the rooms that make
    them (`code_of` in passes/store.py).
    """
    total = hashlib.sha256()
    for package in ("adaptc", "adaptc.passes", "adaptc.runtime"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        # Links are not followed: in a checkout `adaptc/passes` leads to a package that has a turn of its own.
        for file in sorted(file for file in folder.rglob("*") if file.suffix in CODE):
            total.update(f"{package}/{file.relative_to(folder).as_posix()}\0".encode() + file.read_bytes())
    return total.hexdigest()[:8]
