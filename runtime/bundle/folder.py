"""A bundle on disk: written whole or not at all, checked when opened.

A bundle is a folder with a `manifest.json` that lists every other file with its size and sha256.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from adaptc.runtime.bundle.built import carry_built
from adaptc.runtime.bundle.consistency import check_manifest, check_name
from adaptc.runtime.bundle.files.partials import partial_folder
from adaptc.runtime.bundle.files.replace import flush, flush_folders, replace_folder
from adaptc.runtime.bundle.manifest import FileRecord, Manifest
from adaptc.runtime.bundle.names import MANIFEST
from adaptc.runtime.bundle.onnx_file import external_files
from adaptc.runtime.bundle.reading import (
    Comparison,
    check_file,
    damaged,
    leads_out,
    open_file,
    read_checked,
    read_file,
    read_through,
)
from adaptc.runtime.errors import BundleError, EngineError, ReplacedError

_LARGEST_MANIFEST = 1 << 26  # bytes: sixty times what the largest bundle so far has


@dataclass(frozen=True, slots=True)
class Moved:
    """A file that becomes part of a bundle instead of being copied.

    Attributes:
        path: Where it lies, and is no longer when the bundle is written.
        record: Its size and hash, as whoever wrote it counted them.
    """

    path: Path
    record: FileRecord


Content = Path | bytes | Moved
"""What a file of a new bundle is made from: a Path is copied."""

Identity = tuple[int, int]
"""Tells what stands in a place from what stands there next."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that has been checked, and the way to its files: what the manifest does not name is never read.

    Attributes:
        path: Its folder.
        manifest: What it says about itself.
        verified: Whether its files' hashes were compared; files that are read later are compared then.
        identity: Of the manifest's file, by which a bundle that was put in this one's place is noticed.
    """

    path: Path
    manifest: Manifest
    verified: bool = field(default=False, compare=False)
    identity: Identity | None = field(default=None, compare=False, repr=False)

    def has(self, name: str) -> bool:
        """Whether the manifest names a file, relative to the bundle."""
        return name in self.manifest.files

    def file(self, name: str) -> Path:
        """Where a file lies.

        Raises:
            BundleError: the manifest does not name it, or another bundle has been put in this one's place.
        """
        self._record(name)
        self.check_current()
        return self.path / name

    def onnx(self, name: str) -> Path:
        """Where an ONNX file lies that has an engine read no other files than the manifest names for it.

        Raises:
            BundleError: as `file`; or it names other data, or is no ONNX file.
        """
        named = {data for graph in self.manifest.graphs.values() if graph.file == name for data in graph.data}
        try:
            locations = external_files(self.read(name))
        except ValueError as error:
            raise BundleError(f"{self.path / name}: not an ONNX file: {error}; compile again") from error
        for location in sorted(locations):
            if (PurePosixPath(name).parent / location).as_posix() not in named:
                raise BundleError(f"{self.path / name}: reads {location!r}, which is not among its data; compile again")
        return self.file(name)

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            BundleError: the manifest does not name it, or it is not as the manifest says.
        """
        return read_checked(self.path, name, self._record(name), self.verified)

    def below(self, folder: str) -> Mapping[str, bytes]:
        """The files of a folder by their names in it, each read when it is asked for; empty if there are none.

        Raises:
            BundleError: when a file is read, as `read`.
        """
        return _Folder(self, f"{folder}/")

    def check_current(self) -> None:
        """Refuse to go on if another bundle has been put in this one's place since it was opened.

        Raises:
            BundleError: it has.
        """
        if self.identity is None or _identity(self.path / MANIFEST) == self.identity:
            return
        with contextlib.suppress(BundleError, OSError):
            if Manifest.from_json(read_file(self.path / MANIFEST, _LARGEST_MANIFEST)).files == self.manifest.files:
                return
        raise ReplacedError(f"{self.path}: replaced since it was opened; load it again")

    def _record(self, name: str) -> FileRecord:
        try:
            return self.manifest.files[name]
        except KeyError:
            raise BundleError(f"{self.path / name}: not among the bundle's files; compile again") from None

    def __str__(self) -> str:
        size = sum(file.bytes for file in self.manifest.files.values())
        return f"{self.path}: {', '.join(self.manifest.graphs)}; {size / 1e6:.1f} MB"


class _Folder(Mapping[str, bytes]):
    """Files of one folder of a bundle."""

    def __init__(self, bundle: Bundle, prefix: str) -> None:
        self._bundle, self._prefix = bundle, prefix
        self._names = [name.removeprefix(prefix) for name in bundle.manifest.files if name.startswith(prefix)]

    def __getitem__(self, name: str) -> bytes:
        if name not in self._names:
            raise KeyError(name)
        return self._bundle.read(self._prefix + name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_bundle(path: str | Path, verify: bool = True) -> Bundle:
    """Open a bundle and check it.

    Args:
        path: Its folder.
        verify: Also compare the sha256 of every file; without it only presence and size are compared.

    Raises:
        BundleError: no bundle there, of another version, or damaged; the message names the file.
    """
    return _opened(Path(path), verify, weights=True)


@contextlib.contextmanager
def opening(path: str | Path, verify: bool = True) -> Iterator[Bundle]:
    """Open a bundle whose weights are compared with their hashes while the body loads them.

    All else, which has a form that a reader could stumble over, is compared before. Leaving waits for the weights; if
    they are damaged, or the bundle was replaced meanwhile, that is the error, whatever the body gave or raised.

    Args:
        path: Its folder.
        verify: As for `open_bundle`.

    Raises:
        ReplacedError: another bundle was put in its place meanwhile; it may be opened.
        BundleError: as `open_bundle`.
    """
    bundle = _opened(Path(path), verify, weights=False)
    files = bundle.manifest.files
    comparison = Comparison(bundle.path, {name: files[name] for name in bundle.manifest.weights} if verify else {})
    try:
        yield bundle
    except BaseException as error:
        if not isinstance(error, (BundleError, EngineError)):
            comparison.cancel()  # whatever it is, it does not come from damaged weights
            raise
        _finish(bundle, comparison)
        raise
    _finish(bundle, comparison)


def _finish(bundle: Bundle, comparison: Comparison) -> None:
    """Wait for the comparison; what was replaced is compared with the wrong hashes."""
    try:
        comparison.wait()
    except BundleError:
        bundle.check_current()
        raise
    bundle.check_current()


def _opened(root: Path, verify: bool, *, weights: bool) -> Bundle:
    """A bundle whose files were compared, its weights only if they are asked for."""
    while True:
        identity = _identity(root / MANIFEST)
        try:
            manifest = _checked_manifest(root)
            left = frozenset() if weights else manifest.weights
            files = {name: record for name, record in manifest.files.items() if verify and name not in left}
            Comparison(root, files).wait()
            return Bundle(root, manifest, verify, identity)
        except BundleError:
            # A writer may have put a new bundle in this place while we read: then look at that one.
            if _identity(root / MANIFEST) == identity:
                raise


def write_bundle(
    into: str | Path,
    files: Mapping[str, Content],
    manifest: Manifest,
    base: Bundle | None = None,
    *,
    keep_built: bool = False,
) -> Bundle:
    """Write a bundle, whole or not at all.

    Everything goes to a new folder beside `into`, which takes its place in one step at the end. Until then,
    and after an error or Ctrl-C, an older bundle stays as it was. Of two writers the last one to finish wins.

    Args:
        into: The bundle's folder; an older bundle there is replaced.
        files: Content by name, relative to the bundle and with forward slashes.
        manifest: What the bundle says about itself; its `files` are filled in here.
        base: A bundle whose other files are copied as they are, and compared on the way.
        keep_built: Take over what `adaptc build` made of `base`, all of whose files that engines read stay as they are.

    Raises:
        BundleError: `into` is something else than a bundle, a name leaves the folder, a file of `base` is damaged, or
            writing fails (no space, no permission).
    """
    into = Path(into)
    check_destination(into)
    into = into.resolve()  # a link stays a link: what it points to is replaced
    known = {} if base is None else {n: r for n, r in base.manifest.files.items() if n not in files}
    copied = {} if base is None else {name: base.file(name) for name in known}
    writing = "."
    try:
        with partial_folder(into) as folder:
            staged = folder / "bundle"
            staged.mkdir()
            records = {}
            for name, content in {**copied, **files}.items():
                writing = name
                records[name] = _write_file(staged, name, content)
                if records[name] != known.get(name, records[name]):
                    raise damaged(copied[name])
            writing = MANIFEST
            manifest = dataclasses.replace(manifest, files=records)
            check_manifest(manifest)
            _write_file(staged, MANIFEST, manifest.to_json().encode())
            if base is not None and keep_built:
                carry_built(base.path, staged)
            flush_folders(staged)
            identity = _identity(staged / MANIFEST)  # a file keeps it when its folder is moved
            replace_folder(staged, into)
            flush(into.parent)
    except OSError as error:
        raise BundleError(f"{into}: cannot write {writing}: {error.strerror or error}") from error
    return Bundle(into, manifest, verified=True, identity=identity)


def check_destination(into: str | Path) -> None:
    """Refuse to replace anything but a bundle or an empty folder.

    Raises:
        BundleError: a bundle cannot be written there.
    """
    into = Path(into)
    while True:
        before = _identity(into)
        if _is_replaceable(into):
            return
        if _identity(into) == before:  # else another writer has just put a bundle in this place
            raise BundleError(f"{into}: exists and is not a bundle; remove it or name another folder")


def _is_replaceable(into: Path) -> bool:
    try:
        if not into.exists() or (into.is_dir() and not any(into.iterdir())):
            return True
        text = read_file(into / MANIFEST, _LARGEST_MANIFEST)
    except OSError:
        return False
    return b'"schema"' in text and b'"adaptc"' in text


def _identity(path: Path) -> Identity | None:
    """The identity of a file or folder; None if nothing is there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _checked_manifest(root: Path) -> Manifest:
    """A bundle's manifest; the bundle's files have the sizes that it says."""
    if leads_out(root, root / MANIFEST):
        raise BundleError(f"{root / MANIFEST}: leads out of the bundle")
    try:
        text = read_file(root / MANIFEST, _LARGEST_MANIFEST)
    except (OSError, ValueError) as error:  # a ValueError over a path with a null byte
        why = getattr(error, "strerror", None) or error
        raise BundleError(
            f"{root}: no bundle: cannot read {MANIFEST}: {why}; a folder that `adaptc compile` wrote is right"
        ) from error
    try:
        manifest = Manifest.from_json(text)
        check_manifest(manifest)
    except BundleError as error:
        raise BundleError(f"{root / MANIFEST}: {error}") from error
    for name, record in manifest.files.items():
        check_file(root, name, record, verify=False)
    return manifest


def _write_file(root: Path, name: str, content: Content) -> FileRecord:
    """Write one file through to the disk."""
    if name != MANIFEST:
        check_name(name)
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Moved) and _renamed(content.path, path):
        flush(path)
        return content.record
    given = content.path if isinstance(content, Moved) else content
    source: BinaryIO = open_file(given) if isinstance(given, Path) else io.BytesIO(given)
    with source, path.open("xb") as stream:
        record = read_through(source, stream)
        stream.flush()
        os.fsync(stream.fileno())
    return record


def _renamed(file: Path, to: Path) -> bool:
    """Whether a file could be moved; not to another disk, and not onto a file."""
    if to.exists():
        return False
    try:
        file.rename(to)
    except OSError:
        return False
    return True
