"""A bundle on disk: written whole or not at all, checked when opened.

A bundle is a folder with a `manifest.json` that lists every other file with its size and sha256.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from adaptc.runtime.bundle.manifest import FileRecord, Manifest
from adaptc.runtime.bundle.names import MANIFEST
from adaptc.runtime.bundle.plan import Switch
from adaptc.runtime.bundle.replace import replace_folder
from adaptc.runtime.errors import BundleError

_BLOCK = 1 << 20  # bytes read at a time: large enough to hash at full speed, small enough not to matter


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that has been checked.

    Attributes:
        path: Its folder.
        manifest: What it says about itself.
    """

    path: Path
    manifest: Manifest

    def __str__(self) -> str:
        size = sum(file.bytes for file in self.manifest.files.values())
        return f"{self.path}: {', '.join(self.manifest.graphs)}; {size / 1e6:.1f} MB"


def open_bundle(path: str | Path, verify: bool = True) -> Bundle:
    """Open a bundle and check it.

    Args:
        path: Its folder.
        verify: Also compare the sha256 of every file; without it only presence and size are compared.

    Raises:
        BundleError: no bundle there, of another version, or damaged; the message names the file.
    """
    root = Path(path)
    while True:
        before = _identity(root / MANIFEST)
        try:
            return Bundle(root, _checked_manifest(root, verify))
        except BundleError:
            # A writer may have put a new bundle in this place while we read: then look at that one.
            if _identity(root / MANIFEST) == before:
                raise


def write_bundle(into: str | Path, files: Mapping[str, Path | bytes], manifest: Manifest) -> Bundle:
    """Write a bundle, whole or not at all.

    Everything goes to a new folder beside `into`, which takes its place in one step at the end. Until then,
    and after an error or Ctrl-C, an older bundle stays as it was. Of two writers the last one to finish wins.

    Args:
        into: The bundle's folder; an older bundle there is replaced.
        files: Content by name, relative to the bundle and with forward slashes; a Path is copied.
        manifest: What the bundle says about itself; its `files` are filled in here.

    Raises:
        BundleError: `into` is something else than a bundle, a name leaves the folder, or writing fails
            (no space, no permission).
    """
    into = Path(into)
    check_destination(into)
    into = into.resolve()  # a link stays a link: what it points to is replaced
    staged = into.with_name(f".{into.name}.{secrets.token_hex(4)}.partial")
    writing = "."
    try:
        staged.mkdir(parents=True)
        records = {}
        for name, content in files.items():
            writing = name
            records[name] = _write_file(staged, name, content)
        writing = MANIFEST
        manifest = dataclasses.replace(manifest, files=records)
        _check_references(manifest)
        _write_file(staged, MANIFEST, manifest.to_json().encode())
        _flush_folders(staged)
        replace_folder(staged, into)
    except OSError as error:
        raise BundleError(f"{into}: cannot write {writing}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)  # nothing is left there after success
    return Bundle(into, manifest)


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
        text = (into / MANIFEST).read_bytes()
    except OSError:
        return False
    return b'"schema"' in text and b'"adaptc"' in text


def _identity(path: Path) -> tuple[int, int] | None:
    """Tells what stands in a place from what stands there next; None if nothing does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _checked_manifest(root: Path, verify: bool) -> Manifest:
    try:
        text = (root / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(f"{root}: no bundle: cannot read {MANIFEST}: {error.strerror}") from error
    try:
        manifest = Manifest.from_json(text)
        _check_references(manifest)
    except BundleError as error:
        raise BundleError(f"{root / MANIFEST}: {error}") from error
    for name, record in manifest.files.items():
        _check_file(root, name, record, verify)
    return manifest


def _check_references(manifest: Manifest) -> None:
    """The manifest agrees with itself."""
    for name in manifest.files:
        _check_name(name)
    for graph, spec in manifest.graphs.items():
        for name in (spec.file, *spec.data):
            if name not in manifest.files:
                raise BundleError(f"graphs.{graph}: {name!r} is not among the bundle's files")
    for name, gates in manifest.gates.items():
        for each in (name, gates.dense or name):
            if each not in manifest.graphs:
                raise BundleError(f"gates.{name}: no graph {each!r}; there are: {', '.join(manifest.graphs)}")
    for model, modal in manifest.modal.items():
        encoders = [each.encoder for each in modal.modalities.values() if each.encoder is not None]
        for name in (*encoders, *(subset.graph for subset in modal.subsets)):
            if name not in manifest.graphs:
                raise BundleError(f"modal.{model}: no graph {name!r}; there are: {', '.join(manifest.graphs)}")
    for index, step in enumerate(manifest.plan):
        for name in step.graphs:
            if name not in manifest.graphs:
                raise BundleError(f"plan[{index}]: no graph {name!r}; there are: {', '.join(manifest.graphs)}")
        if isinstance(step, Switch):
            if not step.routes:
                raise BundleError(f"plan[{index}]: routes: none; at least one is needed")
            if manifest.route_bytes.get(step.gate, {}).keys() != step.routes.keys():
                raise BundleError(
                    f"route_bytes.{step.gate}: other routes than the plan's; {', '.join(step.routes)} are right"
                )
            if step.router is not None and step.router.file not in manifest.files:
                raise BundleError(f"plan[{index}]: {step.router.file!r} is not among the bundle's files")


def _check_name(name: str) -> None:
    parts = PurePosixPath(name).parts
    plain = name and name == "/".join(parts) and ".." not in parts and not name.startswith("/")
    if not plain or "\\" in name or ":" in name or "\0" in name or name == MANIFEST:
        raise BundleError(f"file {name!r}: not a plain path inside the bundle")


def _check_file(root: Path, name: str, record: FileRecord, verify: bool) -> None:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{path}: leads out of the bundle")
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != record.bytes:
                raise BundleError(f"{path}: damaged: {size} bytes, not {record.bytes}; compile again")
            if verify and read_through(stream, None).sha256 != record.sha256:
                raise BundleError(f"{path}: damaged: its sha256 is not the manifest's; compile again")
    except OSError as error:
        raise BundleError(f"{path}: cannot read: {error.strerror or error}") from error


def _write_file(root: Path, name: str, content: Path | bytes) -> FileRecord:
    """Write one file through to the disk."""
    if name != MANIFEST:
        _check_name(name)
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    source: BinaryIO = content.open("rb") if isinstance(content, Path) else io.BytesIO(content)
    with source, path.open("xb") as stream:
        record = read_through(source, stream)
        stream.flush()
        os.fsync(stream.fileno())
    return record


def read_through(source: BinaryIO, into: BinaryIO | None) -> FileRecord:
    """Read `source` to its end, into a file if there is one, and say what was read."""
    digest, size = hashlib.sha256(), 0
    while block := source.read(_BLOCK):
        digest.update(block)
        size += len(block)
        if into is not None:
            into.write(block)
    return FileRecord(digest.hexdigest(), size)


def _flush_folders(root: Path) -> None:
    """Make the names themselves durable, where the system lets a folder be flushed."""
    if os.name != "posix":
        return
    for folder, _, _ in os.walk(root, topdown=False):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
