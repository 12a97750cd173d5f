"""Folders that something is written in before it gets its place, and how those of writers that are gone are known.

A writer holds a lock inside its folder, which the system lets go of when the writer ends, however it ends. So a folder
whose lock is free was left behind; the number of a process says less, since it is given to others, and means nothing on
another host or in another container.
"""

from __future__ import annotations

import contextlib
import glob
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

LOCK = "lock"
_CONTENT = b"adaptc: written by a process that holds this lock\n"
_NAME = re.compile(r"\..+\.[0-9a-f]{8}\.partial", re.DOTALL)
_DAY = 86_400  # seconds after which a writer counts as gone where a lock cannot say so
_MINUTE = 60


@contextlib.contextmanager
def partial_folder(place: Path) -> Iterator[Path]:
    """A new folder beside `place`, to write in what is then renamed to `place`; removed in the end with what is in it.

    What killed writers of the same place left is removed first.

    Raises:
        OSError: it cannot be made.
    """
    for left in abandoned(place.parent, place.name):
        remove(left)
    folder = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
    folder.mkdir(parents=True)
    lock = None
    try:
        lock = _locked(folder)
        yield folder
    finally:
        if lock is not None:
            lock.close()
        remove(folder)


def abandoned(folder: Path, name: str = "") -> Iterator[Path]:
    """Partial folders that writers left in a folder, and that nobody writes in any more.

    Args:
        folder: Where to look.
        name: Of the place that was written for; "" for any.
    """
    pattern = f".{glob.escape(name)}.*.partial" if name else ".*.partial"
    for path in folder.glob(pattern):
        if _NAME.fullmatch(path.name) and _is_abandoned(path):
            yield path


def remove(folder: Path) -> None:
    """Delete a folder, as far as that can be."""
    shutil.rmtree(folder, ignore_errors=True)


def _locked(folder: Path) -> BinaryIO:
    """Take the lock of a folder; it has its name only once it is held."""
    beginning = folder / f"{LOCK}.new"
    stream = beginning.open("x+b")
    try:
        stream.write(_CONTENT)
        stream.flush()
        _try_lock(stream)
        beginning.rename(folder / LOCK)
    except BaseException:
        stream.close()
        raise
    return stream


def _is_abandoned(folder: Path) -> bool:
    try:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode):
            return False
        if not any(folder.iterdir()):  # its writer ended before it had a lock
            return time.time() - found.st_mtime > _MINUTE
        about = (folder / LOCK).lstat()
        if not stat.S_ISREG(about.st_mode) or about.st_size != len(_CONTENT):
            return False
        with (folder / LOCK).open("r+b") as stream:
            if stream.read() != _CONTENT:
                return False
            held = _try_lock(stream)
    except OSError:
        return False  # finished in this moment, or another user's
    return time.time() - about.st_mtime > _DAY if held is None else held


def _try_lock(stream: BinaryIO) -> bool | None:
    """Whether the lock of a file was free, and is now held until the file is closed; None where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True
