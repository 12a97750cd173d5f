"""Put a new folder in the place of an old one, and files where a reader finds them whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

from adaptc.runtime.bundle.files.partials import partial_folder
from adaptc.runtime.errors import EngineError

_AT_FDCWD = -100  # linux/fcntl.h: paths are relative to the working folder
_RENAME_EXCHANGE = 2  # linux/fs.h
_RENAME_SWAP = 2  # macOS, sys/stdio.h


def replace_folder(new: Path, place: Path) -> None:
    """Move the folder `new` to `place` and remove the folder that stood there, if any.

    On Linux and macOS a reader of `place` finds the old folder or the new one at every moment. Elsewhere,
    and on file systems that cannot exchange two names, there is an instant in which it finds neither.

    Raises:
        OSError: the folders cannot be moved; `place` is as it was.
    """
    aside = new.with_name(new.name + ".old")
    try:
        while not (_renamed(new, place) or _exchanged(new, place)):
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # another writer is at this very line
                place.rename(aside)
    except BaseException:
        if aside.exists() and not place.exists():
            aside.rename(place)
        raise
    finally:
        for old in (new, aside):
            shutil.rmtree(old, ignore_errors=True)


def write_whole(file: Path, content: bytes) -> None:
    """Write a file through to the disk under another name, then give it its own.

    Raises:
        EngineError: no space, no permission.
    """
    try:
        with partial_folder(file) as folder:
            partial = folder / "whole"
            with partial.open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(file)
            flush(file.parent)
    except OSError as error:
        raise EngineError(f"{file}: cannot write: {error.strerror or error}") from error


def flush(path: Path) -> None:
    """Have the disk hold a file's content or a folder's names, where the system can be asked for it.

    Raises:
        OSError: the disk is full or fails.
    """
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folders(root: Path) -> None:
    """`flush` a folder and all folders in it, the innermost first."""
    for folder, _, _ in os.walk(root, topdown=False):
        flush(Path(folder))


def _renamed(new: Path, place: Path) -> bool:
    """Whether `place` was free and `new` is there now."""
    try:
        new.rename(place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _exchanged(new: Path, place: Path) -> bool:
    """Whether the system could exchange the two names in one step."""
    if os.name != "posix":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(new), os.fsencode(place)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        failed = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(*names, _RENAME_SWAP)
    else:
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    # Either this file system cannot exchange, or `place` has gone and a plain rename will do.
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.ENOENT):
        return False
    raise OSError(code, os.strerror(code), str(place))
