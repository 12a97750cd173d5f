"""Results that passes keep, so that the same piece of work is not done twice.

A pass whose work falls into independent pieces (a layer's translation, a matrix's codes) asks a store for each piece
before it does it. A key is a hash of everything that the piece depends on, so what is kept changes how long a compile
takes and never what it gives.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import Any, BinaryIO, Protocol, cast


class Store(Protocol):
    """Where pieces of work are kept."""

    def read(self, kind: str, key: str) -> bytes | None:
        """What was written under a key, or None."""

    def write(self, kind: str, key: str, content: bytes) -> None:
        """Keep a piece; `kind` says which pass it is of, `key` is 64 hex digits."""

    def scratch(self) -> BinaryIO:
        """A new file without a name, for what does not fit in memory; it is gone when it is closed.

        Raises:
            OSError: it cannot be made.
        """


class Memory:
    """A store in memory that forgets what was not asked for longest.

    Args:
        limit: Bytes that are kept at most.
    """

    def __init__(self, limit: int = 64_000_000) -> None:
        self._limit, self._bytes, self._lock = limit, 0, Lock()
        self._pieces: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    def read(self, kind: str, key: str) -> bytes | None:
        with self._lock:
            content = self._pieces.get((kind, key))
            if content is not None:
                self._pieces.move_to_end((kind, key))
            return content

    def write(self, kind: str, key: str, content: bytes) -> None:
        with self._lock:
            self._bytes += len(content) - len(self._pieces.pop((kind, key), b""))
            self._pieces[kind, key] = content
            while self._bytes > self._limit:
                self._bytes -= len(self._pieces.popitem(last=False)[1])

    def scratch(self) -> BinaryIO:
        return cast("BinaryIO", TemporaryFile())


class Layered:
    """A store that lasts, with one in memory behind it: what either has is found, and both get what is made.

    Args:
        lasting: Asked first; it gets what only the other has.
        memory: Asked for what the first does not have.
    """

    def __init__(self, lasting: Store, memory: Store) -> None:
        self._lasting, self._memory = lasting, memory

    def read(self, kind: str, key: str) -> bytes | None:
        content = self._lasting.read(kind, key)
        if content is None and (content := self._memory.read(kind, key)) is not None:
            self._lasting.write(kind, key, content)
        return content

    def write(self, kind: str, key: str, content: bytes) -> None:
        self._lasting.write(kind, key, content)
        self._memory.write(kind, key, content)

    def scratch(self) -> BinaryIO:
        return self._lasting.scratch()


PROCESS = Memory()
"""What passes of this process keep where nobody gives them a store that lasts."""


def piece_key(*parts: Any) -> str:
    """A hash of values that JSON can hold, as 64 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def code_of(files: Iterable[Path]) -> str:
    """A hash of source files, as 64 hex digits: part of a key, so that other code has other keys."""
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(f"{file.name}\0".encode() + file.read_bytes())
    return total.hexdigest()


def versions_of(*libraries: str) -> dict[str, str]:
    """Versions of installed libraries: part of a key, as their results may change with them."""
    return {name: importlib.metadata.version(name) for name in libraries}
