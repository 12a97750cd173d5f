"""Hashes of a model's files: by them the cache and the manifest tell models apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from adaptc.errors import LoadError


def file_digest(origin: str, path: Path) -> bytes:
    """Return the sha256 of a file's content, 32 bytes.

    Args:
        origin: The model's name in the spec, for errors.
        path: The file.

    Raises:
        LoadError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise LoadError(f"{origin}: {path} cannot be read: {error.strerror}") from error
    return digest.digest()


def hash_of(digests: Mapping[str, bytes]) -> str:
    """Return one hash of several files' names and digests, as 64 hex digits; their order does not count."""
    lines = (f"{name}\0{digest.hex()}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
