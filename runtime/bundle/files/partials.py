"""Folders that something is written in before it gets its place, and how those of writers that are gone are known.

A writer holds a lock inside its folder, which the system lets go of when the writer ends, however it ends. So a folder
whose lock is free was left behind; the number of a process says less, since it is given to others, and means nothing on
another host or in another container.
"""

from __future__ import annotations

import contextlib
import glob
import os
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


@contextlib.contextmanager
def partial_folder(place: Path) -> Iterator[Path]:
    """A new folder beside `place`, to write in what is then renamed to `place`; removed in the end with what is in it.

    What killed writers of the same place left is removed first.

    Raises:
        OSError: it cannot be made.
    """
    for left in abandoned(place.parent, place.name):
        remove(left)
    lock = None
    while lock is None:
        folder = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
        folder.mkdir(parents=True)
        lock = _locked(folder)
    try:
        yield folder
    finally:
        remove(folder)
        lock.close()


def abandoned(folder: Path, name: str = "") -> Iterator[Path]:
    """Partial folders that writers left in a folder, and that nobody writes in any more, each while it is looked at.

    Args:
        folder: Where to look.
        name: Of the place that was written for; "" for any.
    """
    pattern = f".{glob.escape(name)}.*.partial" if name else ".*.partial"
    for path in folder.glob(pattern):
        if _NAME.fullmatch(path.name):
            with _claimed(path) as free:
                if free:
                    yield path


def remove(folder: Path) -> None:
    """Delete a partial folder as far as that can be, its lock last: what is left of it is known as such."""
    with contextlib.suppress(OSError):
        for each in [each for each in folder.iterdir() if each.name != LOCK]:
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each, ignore_errors=True)
            else:
                each.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _locked(folder: Path) -> BinaryIO | None:
    """Take the lock of a new folder; None if another process has just removed the folder, as it was empty."""
    try:
        stream = (folder / LOCK).open("x+b")
    except FileNotFoundError:
        return None
    if _try_lock(stream) is False or not _is_there(stream, folder / LOCK):
        stream.close()
        remove(folder)
        return None
    stream.write(_CONTENT)
    stream.flush()
    return stream


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Whether nobody writes in a folder; while the body runs nobody begins to."""
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            yield False
            return
        names = {each.name for each in folder.iterdir()}
        stream = (folder / LOCK).open("r+b") if LOCK in names and not (folder / LOCK).is_symlink() else None
    except OSError:  # finished in this moment, or another user's
        yield False
        return
    if stream is None:
        yield not names  # its writer makes another one if it still lives
        return
    with stream:
        held, content = _try_lock(stream), stream.read(len(_CONTENT) + 1)
        ours = content == _CONTENT or (not content and names == {LOCK})
        old = time.time() - os.fstat(stream.fileno()).st_mtime > _DAY
        yield ours and (old if held is None else held)


def _is_there(stream: BinaryIO, path: Path) -> bool:
    """Whether a file that is open still has its name."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.lstat())
    except OSError:
        return False


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
