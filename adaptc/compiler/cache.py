"""A cache of what compiling made, found again by content.

An entry's key is a hash of everything it was made from: sources' hashes, options, versions. So nothing in it can be
stale, and deleting any of it costs time, never correctness. Entries are written beside their place and renamed into
it: a killed compile leaves whole entries or none, and the next one resumes from them.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptc.errors import AdaptcError


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in the cache.

    Attributes:
        kind: What it is: `bundle`, `lowered`, `blocks`.
        key: Hash of what it was made from.
        path: Its file or folder.
        bytes: Its size.
        used: When it was last made or found, seconds since the epoch.
    """

    kind: str
    key: str
    path: Path
    bytes: int
    used: float


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of entries, `<root>/<kind>/<key>`.

    Attributes:
        root: The folder; made when first needed.
    """

    root: Path

    @classmethod
    def default(cls) -> Cache:
        """The user's cache folder, as the XDG base directory specification has it."""
        return cls(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adaptc")

    def find(self, kind: str, key: str) -> Path | None:
        """The entry's path, if it is there."""
        path = self.root / kind / key
        if not path.exists():
            return None
        os.utime(path)
        return path

    def get(self, kind: str, key: str, make: Callable[[Path], None]) -> Path:
        """The entry's path; if it is not there, `make` writes it to the path it is given (file or folder).

        Raises:
            AdaptcError: the entry cannot be written; the disk may be full.
        """
        if (found := self.find(kind, key)) is not None:
            return found
        path = self.root / kind / key
        staged = path.with_name(f".{key}.{secrets.token_hex(4)}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            make(staged)
            try:
                staged.rename(path)
            except OSError:
                # Another process made the same entry first; as its key is ours, so is its content.
                if not path.exists():
                    raise
        except OSError as error:
            raise AdaptcError(
                f"{path}: cannot write to the cache: {error.strerror or error}; see `adaptc cache`"
            ) from error
        finally:
            _remove(staged)
        return path

    def drop(self, kind: str, key: str) -> None:
        """Delete one entry."""
        _remove(self.root / kind / key)

    def entries(self) -> Iterator[Entry]:
        """Every whole entry, the longest unused first."""
        found = []
        for path in self.root.glob("*/*"):
            if not path.name.startswith("."):
                files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
                size = sum(p.stat().st_size for p in files)
                found.append(Entry(path.parent.name, path.name, path, size, path.stat().st_mtime))
        yield from sorted(found, key=lambda entry: entry.used)

    def clear(self, kind: str | None = None) -> int:
        """Delete all entries (of a kind), and what killed processes left; returns the bytes freed."""
        freed = sum(entry.bytes for entry in self.entries() if kind in (None, entry.kind))
        for folder in self.root.glob(kind or "*"):
            _remove(folder)
        return freed


def key_of(*parts: Any) -> str:
    """A hash of values that JSON can hold, as 64 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
