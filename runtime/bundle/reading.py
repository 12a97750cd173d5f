"""Read files of a bundle: plain files only, and compared with what the manifest says of them."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event
from typing import BinaryIO

from adaptc.runtime.bundle.manifest import FileRecord
from adaptc.runtime.errors import BundleError

_BLOCK = 1 << 20  # bytes read at a time: large enough to hash at full speed, small enough not to matter
_HASHING = 4  # files hashed at the same time: more are bound by memory, or by the disk


def open_file(path: Path) -> BinaryIO:
    """Open a plain file, and nothing that a reader could wait for or that has no end, such as a pipe or a device.

    Raises:
        OSError: it is not there, or no plain file.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    try:
        _check_plain(os.fstat(descriptor).st_mode)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_plain(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a plain file")


def read_file(path: Path, most: int) -> bytes:
    """The content of a plain file.

    Args:
        path: The file.
        most: The largest size that is read, in bytes.

    Raises:
        OSError: it cannot be read, is no plain file, or is larger.
    """
    with open_file(path) as stream:
        if os.fstat(stream.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"more than {most:,} bytes", str(path))
        return stream.read(most)


def leads_out(root: Path, path: Path) -> bool:
    """Whether a path, its links followed, is outside of a folder."""
    inside = os.path.realpath(root)
    return os.path.commonpath((inside, os.path.realpath(path))) != inside


def check_file(
    root: Path, name: str, record: FileRecord, verify: bool, stopped: Callable[[], bool] = lambda: False
) -> None:
    """Compare a file of a bundle with its record.

    Args:
        root: The bundle's folder.
        name: The file, relative to it.
        record: Size and hash.
        verify: Whether the hash is compared as well as the size.
        stopped: Asked between blocks whether to end without a result.

    Raises:
        BundleError: it is missing, damaged, or leads out of the bundle.
    """
    path = root / name
    if leads_out(root, path):
        raise BundleError(f"{path}: leads out of the bundle")
    try:
        with open_file(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != record.bytes:
                raise BundleError(f"{path}: damaged: {size} bytes, not {record.bytes}; compile again")
            if verify and read_through(stream, None, stopped).sha256 != record.sha256 and not stopped():
                raise damaged(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot read: {error.strerror or error}") from error


def read_checked(root: Path, name: str, record: FileRecord, verify: bool) -> bytes:
    """The content of a file of a bundle; what is compared is what is returned.

    Args:
        root: The bundle's folder.
        name: The file, relative to it.
        record: Size and hash.
        verify: Whether the hash is compared as well as the size.

    Raises:
        BundleError: as `check_file`.
    """
    check_file(root, name, record, verify=False)
    path = root / name
    try:
        content = read_file(path, record.bytes)
    except OSError as error:
        raise BundleError(f"{path}: cannot read: {error.strerror or error}") from error
    if len(content) != record.bytes or (verify and hashlib.sha256(content).hexdigest() != record.sha256):
        raise damaged(path)
    return content


class Comparison:
    """Compares files of a bundle with their hashes, in threads of its own while the caller does other things."""

    def __init__(self, root: Path, files: Mapping[str, FileRecord]) -> None:
        """Begin.

        Args:
            root: The bundle's folder.
            files: The record of each file, by its name.
        """
        from concurrent.futures import ThreadPoolExecutor

        self._stop = Event()
        self._pool = ThreadPoolExecutor(_HASHING, "adaptc-hash")
        # The largest first: they decide when the last one is done.
        order = sorted(files.items(), key=lambda file: -file[1].bytes)
        self._checks = [self._pool.submit(check_file, root, *file, True, self._stop.is_set) for file in order]

    def wait(self) -> None:
        """Wait until every file was compared.

        Raises:
            BundleError: one is damaged.
        """
        try:
            for check in self._checks:
                check.result()
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End without comparing what is left."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)


def read_through(source: BinaryIO, into: BinaryIO | None, stopped: Callable[[], bool] = lambda: False) -> FileRecord:
    """Read `source` to its end, into a file if there is one, and say what was read.

    Args:
        source: An open file.
        into: Where it is copied to.
        stopped: Asked between blocks whether to end before the end.
    """
    digest, size = hashlib.sha256(), 0
    block = memoryview(bytearray(_BLOCK))
    while not stopped() and (read := source.readinto(block)):  # type: ignore[attr-defined]
        digest.update(block[:read])
        size += read
        if into is not None:
            into.write(block[:read])
    return FileRecord(digest.hexdigest(), size)


def damaged(path: Path) -> BundleError:
    """What is said of a file whose content is another than the manifest's."""
    return BundleError(f"{path}: damaged: its sha256 is not the manifest's; compile again")
