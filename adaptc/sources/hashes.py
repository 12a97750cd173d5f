"""Hashes of a model's files: by them the cache and the manifest tell models apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock

from adaptc.errors import LoadError
from adaptc.runtime.progress import Progress

_BLOCK = 1 << 20


class Hashed:
    """Counts the bytes of some files as they are hashed, in several threads, and tells of them in MiB."""

    def __init__(self, progress: Progress, total: int) -> None:
        """Begin with none of `total` bytes."""
        self._progress, self._total, self._done, self._lock = progress, total, 0, Lock()

    def add(self, count: int) -> None:
        """Count some more; only a large source is told of."""
        with self._lock:
            before, self._done = self._done >> 28, self._done + count
            if self._done >> 28 > before:
                self._progress.step(self._done >> 20, max(self._done, self._total) >> 20, "MiB hashed")


def file_digest(origin: str, path: Path, told: Callable[[int], None] = lambda _: None) -> bytes:
    """Return the sha256 of a file's content, 32 bytes.

    Args:
        origin: The model's name in the spec, for errors.
        path: The file.
        told: Called with the number of bytes that were hashed, again and again.

    Raises:
        LoadError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                told(len(block))
    except OSError as error:
        raise LoadError(f"{origin}: {path} cannot be read: {error.strerror}") from error
    return digest.digest()


def hash_of(digests: Mapping[str, bytes]) -> str:
    """Return one hash of several files' names and digests, as 64 hex digits; their order does not count."""
    lines = (f"{name}\0{digest.hex()}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
