"""A cache of what compiling made, found again by content.

An entry's key is a hash of everything it was made from: sources' hashes, options, versions. So nothing in it can be
stale, and deleting any of it costs time, never correctness. Entries are written beside their place, flushed to the
disk and renamed into it: a killed compile leaves whole entries or none, and the next one resumes from them.

An entry is a folder, `<root>/<kind>/<key>/`, with `content` (a file or a folder) and `seal.json`, which says what it is
and holds the sha256 of every file. What was read differently than it was written is dropped, and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptc.errors import AdaptcError

CONTENT = "content"
SEAL = "seal.json"
FORMAT = "adaptc cache entry, 1"
"""What a seal begins with: only folders that have it are ever deleted."""

_KEY = re.compile(r"[0-9a-f]{64}")
_PARTIAL = re.compile(r"\.[0-9a-f]{64}\.(?P<host>[^.]*)\.(?P<process>\d+)\.[0-9a-f]{8}\.partial")
_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in the cache.

    Attributes:
        kind: What it is: `bundle`, `lowered`, `gptq`, `translation`, …
        key: Hash of what it was made from.
        path: Its folder.
        bytes: Its size.
        used: When it was last made or found, seconds since the epoch.
        whole: False for what a writer that is gone left unfinished; the next write removes it.
    """

    kind: str
    key: str
    path: Path
    bytes: int
    used: float
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of entries.

    Attributes:
        root: The folder; made when first needed.
    """

    root: Path

    @classmethod
    def default(cls) -> Cache:
        """The user's cache folder, as the XDG base directory specification has it."""
        return cls(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adaptc")

    def find(self, kind: str, key: str) -> Path | None:
        """The content of an entry, a file or a folder, if it is there and as it was written.

        A damaged entry is dropped.
        """
        entry = self._place(kind, key)
        if not entry.exists():
            return None
        if not _intact(entry, kind, key):
            self.drop(kind, key)
            return None
        os.utime(entry)
        return entry / CONTENT

    def put(self, kind: str, key: str, make: Callable[[Path], None]) -> Path:
        """Add an entry: `make` gets a path and writes the content there, as a file or a folder.

        Returns:
            The content's path.

        Raises:
            AdaptcError: the entry cannot be written; the disk may be full.
        """
        entry = self._place(kind, key)
        staged = entry.with_name(_partial_name(key))
        try:
            self._sweep()
            staged.mkdir(parents=True)
            make(staged / CONTENT)
            _seal(staged, kind, key)
            try:
                staged.rename(entry)
            except OSError:
                # Another process made the same entry first; as its key is ours, so is its content.
                if not entry.exists():
                    raise
            _flush(entry.parent)
        except OSError as error:
            raise AdaptcError(
                f"{entry}: cannot write to the cache: {error.strerror or error}; see `adaptc cache`"
            ) from error
        finally:
            _remove(staged)
        return entry / CONTENT

    def get(self, kind: str, key: str, make: Callable[[Path], None]) -> Path:
        """The content of an entry, which is made if it is not there; see `find` and `put`.

        Raises:
            AdaptcError: the entry cannot be written.
        """
        return self.find(kind, key) or self.put(kind, key, make)

    def read(self, kind: str, key: str) -> bytes | None:
        """The content of an entry that is one file; None if it is not there."""
        path = self.find(kind, key)
        return None if path is None else path.read_bytes()

    def write(self, kind: str, key: str, content: bytes) -> None:
        """Add an entry that is one file.

        Raises:
            AdaptcError: it cannot be written.
        """

        def make(path: Path) -> None:
            path.write_bytes(content)

        self.put(kind, key, make)

    def drop(self, kind: str, key: str) -> None:
        """Delete one entry; whoever finds it until then finds it whole."""
        _discard(self._place(kind, key))

    def entries(self) -> Iterator[Entry]:
        """Every entry, and what writers that are gone left unfinished; the longest unused first."""
        entries = [_entry(path, whole=True) for path in self._whole()]
        entries += [_entry(path, whole=False) for path in self._abandoned()]
        yield from sorted(entries, key=lambda entry: entry.used)

    def clear(self, kind: str | None = None) -> int:
        """Delete all entries (of a kind), and what writers that are gone left; returns the bytes freed.

        Only folders with the name and the seal of an entry are deleted, whatever else lies there.
        """
        entries = [entry for entry in self.entries() if kind in (None, entry.kind)]
        for entry in entries:
            _discard(entry.path)
        for folder in {entry.path.parent for entry in entries}:
            if not any(folder.iterdir()):
                folder.rmdir()
        return sum(entry.bytes for entry in entries)

    def _place(self, kind: str, key: str) -> Path:
        return self.root / kind / key

    def _whole(self) -> Iterator[Path]:
        for path in self.root.glob("*/*"):
            if _KEY.fullmatch(path.name) and not path.is_symlink() and _read_seal(path) is not None:
                yield path

    def _abandoned(self) -> Iterator[Path]:
        for path in self.root.glob("*/.*.partial"):
            if _is_abandoned(path):
                yield path

    def _sweep(self) -> None:
        for path in self._abandoned():
            _remove(path)


def key_of(*parts: Any) -> str:
    """A hash of values that JSON can hold, as 64 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _entry(path: Path, *, whole: bool) -> Entry:
    size = sum(file.stat().st_size for file in _files(path).values())
    return Entry(path.parent.name, path.name.removeprefix(".")[:64], path, size, path.stat().st_mtime, whole)


def _files(folder: Path) -> dict[str, Path]:
    """Every file below a folder by its name relative to it; links are files that no seal has."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix(): path for path in sorted(paths)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _seal(folder: Path, kind: str, key: str) -> None:
    """Write down the hash of every file of an entry, and flush everything to the disk."""
    hashes = {name: _sha256(path) for name, path in _files(folder).items()}
    about = {"format": FORMAT, "kind": kind, "key": key, "files": hashes}
    (folder / SEAL).write_text(json.dumps(about))
    for path in _files(folder).values():
        _flush(path)
    for parent, _, _ in os.walk(folder, topdown=False):
        _flush(Path(parent))


def _read_seal(entry: Path) -> dict[str, Any] | None:
    """An entry's seal; None if it has none that is ours."""
    try:
        seal = json.loads((entry / SEAL).read_bytes())
    except (OSError, ValueError):
        return None
    return seal if isinstance(seal, dict) and seal.get("format") == FORMAT else None


def _intact(entry: Path, kind: str, key: str) -> bool:
    """Whether an entry holds what was written: the same files, of the same content."""
    seal = _read_seal(entry)
    if seal is None or (seal.get("kind"), seal.get("key")) != (kind, key):
        return False
    try:
        hashes = {name: _sha256(path) for name, path in _files(entry).items() if name != SEAL}
    except OSError:
        return False
    return hashes == seal.get("files")


def _flush(path: Path) -> None:
    """Have the disk hold a file's content or a folder's names, where the system can be asked for it."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial_name(key: str) -> str:
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
    return f".{key}.{host}.{os.getpid()}.{secrets.token_hex(4)}.partial"


def _is_abandoned(path: Path) -> bool:
    """Whether the writer of an unfinished entry is gone: its process has ended, or a day has passed."""
    match = _PARTIAL.fullmatch(path.name)
    if match is None:
        return False
    try:
        if time.time() - path.stat().st_mtime > _DAY:
            return True
    except OSError:
        return False  # finished in this moment
    here = _PARTIAL.fullmatch(_partial_name("0" * 64))
    assert here is not None
    if os.name != "posix" or match["host"] != here["host"]:
        return False
    try:
        os.kill(int(match["process"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _discard(path: Path) -> None:
    """Delete a folder so that nobody sees half of it."""
    aside = path if path.name.startswith(".") else path.with_name(_partial_name(path.name))
    try:
        path.rename(aside)
    except OSError:
        return  # another process was first
    _remove(aside)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
