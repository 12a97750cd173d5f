"""A cache of what compiling made, found again by content.

An entry's key is a hash of everything it was made from: sources' hashes, options, versions. So nothing in it can be
stale, and deleting any of it costs time, never correctness. Entries are written beside their place, flushed to the
disk and renamed into it: a killed compile leaves whole entries or none, and the next one resumes from them.

An entry is a folder, `<root>/<kind>/<key>/`, with `content` (a file or a folder) and `seal.json`, which says what it is
and holds the sha256 of every file. What is read otherwise than it was written is dropped, and made again. A folder
without a seal that says its own kind and key is nobody's entry: it is neither read nor deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Literal, TypeVar, cast

from adaptc.errors import AdaptcError
from adaptc.ir.stored.disk import writing
from adaptc.runtime.bundle.files.partials import LOCK, abandoned, partial_folder, remove
from adaptc.runtime.bundle.files.replace import flush, flush_folders
from adaptc.runtime.bundle.reading import open_file, read_file, read_through

CONTENT = "content"
SEAL = "seal.json"
FORMAT = "adaptc cache entry, 1"
"""What a seal begins with."""

State = Literal["whole", "unfinished", "unsealed"]
"""Of an entry: whole; left by a writer that is gone, and removed by the next write; or without a seal of ours, as
earlier versions left them, and never touched."""

Value = TypeVar("Value")

Make = Callable[[Path], Mapping[str, str] | None]
"""Writes an entry's content to a path, as a file or a folder; may say the sha256 of files in the folder, by name, so
that they are not read once more for their seal."""

_KEY = re.compile(r"[0-9a-f]{64}")
_UNLOCKED = re.compile(r"\.[0-9a-f]{64}\..*partial")  # of earlier versions, which nobody can tell to be left
_LARGEST_SEAL = 1 << 26  # bytes
_HASHING = 4  # files hashed at the same time


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in the cache.

    Attributes:
        kind: What it is: `bundle`, `lowered`, `gptq`, `translation`, …
        key: Hash of what it was made from.
        path: Its folder.
        bytes: Its size.
        used: When it was last made or found, seconds since the epoch.
        state: See `State`.
    """

    kind: str
    key: str
    path: Path
    bytes: int
    used: float
    state: State = "whole"


@dataclass(frozen=True, slots=True)
class Cleared:
    """What clearing did.

    Attributes:
        bytes: Freed.
        left: Entries that stay: the user may not delete them, or they hold files that are not theirs.
    """

    bytes: int
    left: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of entries.

    Attributes:
        root: The folder; made when first needed.
    """

    root: Path

    @classmethod
    def default(cls) -> Cache:
        """The user's cache folder, as the XDG base directory specification has it.

        Raises:
            AdaptcError: the user has no home.
        """
        given = os.environ.get("XDG_CACHE_HOME", "")
        if os.path.isabs(given):  # the specification has relative ones ignored
            return cls(Path(given) / "adaptc")
        try:
            return cls(Path.home() / ".cache" / "adaptc")
        except RuntimeError as error:
            raise AdaptcError("cache: this user has no home folder; --cache-dir names another") from error

    def find(self, kind: str, key: str) -> Path | None:
        """The content of an entry, a file or a folder, if it is there and as it was written.

        A damaged entry is dropped.
        """
        entry = self._place(kind, key)
        if not os.path.lexists(entry):
            return None
        if not _intact(entry):
            self.drop(kind, key)
            return None
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(entry)
        return entry / CONTENT

    def put(self, kind: str, key: str, make: Make) -> Path:
        """Add an entry: `make` gets a path and writes the content there, as a file or a folder.

        Returns:
            The content's path.

        Raises:
            AdaptcError: the entry cannot be written; the disk may be full.
        """
        entry = self._place(kind, key)
        try:
            self._sweep()
            with partial_folder(entry) as folder:
                staged = folder / "entry"
                staged.mkdir()
                with writing(staged):
                    known = make(staged / CONTENT) or {}
                _seal(staged, kind, key, {f"{CONTENT}/{name}": digest for name, digest in known.items()})
                self._move(staged, entry)
                flush(entry.parent)
        except OSError as error:
            raise AdaptcError(
                f"{entry}: cannot write to the cache: {error.strerror or error}; see `adaptc cache`"
            ) from error
        return entry / CONTENT

    def get(self, kind: str, key: str, make: Make) -> Path:
        """The content of an entry, which is made if it is not there; see `find` and `put`.

        Raises:
            AdaptcError: the entry cannot be written.
        """
        return self.find(kind, key) or self.put(kind, key, make)

    def use(self, kind: str, key: str, make: Make, read: Callable[[Path], Value]) -> Value:
        """What `read` gives of an entry's content.

        The entry is made if it is not there, and made again if another process clears the cache while it is read.

        Raises:
            AdaptcError: the entry cannot be written.
        """
        while True:
            path = self.get(kind, key, make)
            entry = _identity(path)
            try:
                return read(path)
            except Exception:
                if entry is not None and _identity(path) == entry:
                    raise

    def read(self, kind: str, key: str) -> bytes | None:
        """The content of an entry that is one file; None if it is not there."""
        path = self.find(kind, key)
        try:
            return None if path is None else path.read_bytes()
        except OSError:  # another process has just cleared the cache
            return None

    def write(self, kind: str, key: str, content: bytes) -> None:
        """Add an entry that is one file.

        Raises:
            AdaptcError: it cannot be written.
        """

        def make(path: Path) -> None:
            path.write_bytes(content)

        self.put(kind, key, make)

    def scratch(self) -> BinaryIO:
        """A new file without a name, on the cache's disk; it is gone when it is closed.

        Raises:
            OSError: it cannot be made.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        return cast("BinaryIO", TemporaryFile(dir=self.root))

    def drop(self, kind: str, key: str) -> None:
        """Free the place of an entry; whoever finds it until then finds it whole. Files that are not its own stay."""
        entry = self._place(kind, key)
        if not _discarded(entry):
            with contextlib.suppress(OSError):
                entry.rename(entry.with_name(f"{key}.kept.{secrets.token_hex(4)}"))

    def entries(self) -> Iterator[Entry]:
        """Everything in the cache, the longest unused first."""
        found = [*self._sealed_or_not(), *self._unfinished()]
        yield from sorted(found, key=lambda entry: entry.used)

    def clear(self, kind: str | None = None) -> Cleared:
        """Delete all entries (of a kind), and what writers that are gone left.

        Only what an entry's seal names is deleted, whatever else lies there.
        """
        freed, left = 0, list[Entry]()
        for entry in self.entries():
            if kind not in (None, entry.kind) or entry.state == "unsealed":
                continue
            if entry.state == "unfinished":
                remove(entry.path)
            if entry.path.exists() and not _discarded(entry.path):
                left.append(entry)
            else:
                freed += entry.bytes
            with contextlib.suppress(OSError):  # other entries are in it
                entry.path.parent.rmdir()
        return Cleared(freed, tuple(left))

    def _place(self, kind: str, key: str) -> Path:
        return self.root / kind / key

    def _move(self, staged: Path, entry: Path) -> None:
        """Give an entry its place."""
        try:
            staged.rename(entry)
        except OSError:
            # Another process made the same entry first; as its key is ours, so is its content.
            if not os.path.lexists(entry):
                raise
            if not _intact(entry):
                self.drop(entry.parent.name, entry.name)
                staged.rename(entry)

    def _kinds(self) -> Iterator[Path]:
        """Folders of entries; links lead to what is not in this cache."""
        with contextlib.suppress(OSError):
            yield from sorted(each for each in self.root.iterdir() if each.is_dir() and not each.is_symlink())

    def _sealed_or_not(self) -> Iterator[Entry]:
        for kind in self._kinds():
            for path in kind.glob("*"):
                if _KEY.fullmatch(path.name) and not path.is_symlink():
                    yield from _entry(path, path.name, "whole" if _is_marked(path) else "unsealed")
                elif _UNLOCKED.fullmatch(path.name) and path.is_dir() and not (path / LOCK).exists():
                    yield from _entry(path, path.name[1:65], "unsealed")

    def _unfinished(self) -> Iterator[Entry]:
        for kind in self._kinds():
            for path in abandoned(kind):
                yield from _entry(path, path.name[1:65], "unfinished")

    def _sweep(self) -> None:
        for kind in self._kinds():
            for path in abandoned(kind):
                remove(path)


def key_of(*parts: Any) -> str:
    """A hash of values that JSON can hold, as 64 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _entry(path: Path, key: str, state: State) -> Iterator[Entry]:
    """An entry, unless it goes in this moment."""
    with contextlib.suppress(OSError):
        about = path.stat()
        files = _files(path).values() if path.is_dir() else (path,)
        yield Entry(path.parent.name, key, path, sum(each.lstat().st_size for each in files), about.st_mtime, state)


def _identity(content: Path) -> int | None:
    """Tells the content of an entry from that of one which was made in its place; None if there is none."""
    try:
        return content.lstat().st_ino
    except OSError:
        return None


def _files(folder: Path) -> dict[str, Path]:
    """Everything below a folder that is no folder, links included, by its name relative to it."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*files, *(each for each in folders if Path(parent, each).is_symlink())):
            path = Path(parent, name)
            found[path.relative_to(folder).as_posix()] = path
    return dict(sorted(found.items()))


def _seal(folder: Path, kind: str, key: str, known: Mapping[str, str]) -> None:
    """Write down the hash of every file of an entry, those that are not known, and flush everything to the disk."""
    files = _files(folder)
    hashes = dict(known) | _hashes({name: path for name, path in files.items() if name not in known})
    hashes = {name: hashes[name] for name in files}
    about = {"format": FORMAT, "kind": kind, "key": key, "files": hashes}
    (folder / SEAL).write_text(json.dumps(about))
    for path in _files(folder).values():
        flush(path)
    flush_folders(folder)


def _read_seal(entry: Path) -> dict[str, str] | None:
    """The sha256 of an entry's files by name; None if it has no seal that says that this is the entry."""
    try:
        seal = json.loads(read_file(entry / SEAL, _LARGEST_SEAL)) if not (entry / SEAL).is_symlink() else None
    except (OSError, ValueError, RecursionError):
        return None
    about = {"format": FORMAT, "kind": entry.parent.name, "key": entry.name}
    if not isinstance(seal, dict) or {name: seal.get(name) for name in about} != about:
        return None
    files = seal.get("files")
    return files if isinstance(files, dict) and all(isinstance(each, str) for each in files.values()) else None


def _intact(entry: Path) -> bool:
    """Whether an entry holds what was written: the same files, of the same content."""
    sealed = None if entry.is_symlink() else _read_seal(entry)
    try:
        return sealed is not None and sealed == _hashes({n: p for n, p in _files(entry).items() if n != SEAL})
    except OSError:
        return False


def _hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """The sha256 of plain files by name, several at a time.

    Raises:
        OSError: one is none, or cannot be read.
    """
    with ThreadPoolExecutor(_HASHING) as pool:
        return dict(zip(files, pool.map(_sha256, files.values()), strict=True))


def _sha256(path: Path) -> str:
    """Of a plain file.

    Raises:
        OSError: it is none, or cannot be read.
    """
    if not stat.S_ISREG(path.lstat().st_mode):
        raise OSError("not a plain file")
    with open_file(path) as file:
        return read_through(file, None).sha256


def _is_marked(entry: Path) -> bool:
    """Whether a folder has a seal of ours, or what is left of one that is damaged."""
    try:
        seal = read_file(entry / SEAL, _LARGEST_SEAL)
    except OSError:
        return False
    return FORMAT.encode() in seal or entry.name.encode() in seal


def _is_own(entry: Path) -> bool:
    """Whether everything in a folder is an entry's: what its seal names or, if that is damaged, its content."""
    sealed = _read_seal(entry)
    names = _files(entry)
    if sealed is not None:
        return set(names) <= {SEAL, *sealed}
    return _is_marked(entry) and all(name.partition("/")[0] in (SEAL, CONTENT) for name in names)


def _discarded(entry: Path) -> bool:
    """Whether an entry could be deleted, so that nobody sees half of it; one that holds foreign files stays."""
    try:
        if entry.is_symlink() or not _is_own(entry):
            return False
        with partial_folder(entry) as folder:
            entry.rename(folder / "entry")
    except OSError:
        return not os.path.lexists(entry)  # another process was first, or this user may not
    return True
