"""Write an exported folder, whole or not at all, and over nothing that adaptc did not write."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

from adaptc import __version__
from adaptc.exports.options import Exported
from adaptc.runtime.bundle.files.partials import partial_folder
from adaptc.runtime.bundle.files.replace import flush, flush_folders, replace_folder
from adaptc.runtime.bundle.folder import write_bundle
from adaptc.runtime.bundle.reading import read_file
from adaptc.runtime.errors import BundleError, RequestError

MARK = "adaptc-export.json"
"""The file by which a folder is known as an export; it says what of."""

_LARGEST_MARK = 1 << 20


def write_export(into: Path, exported: Exported, kind: str) -> None:
    """Write a folder; an older export there is replaced.

    Args:
        into: The folder.
        exported: Its content.
        kind: What it is for.

    Raises:
        BundleError: the bundle's files are damaged.
        RequestError: `into` is something else than an export, or writing fails (no space, no permission).
    """
    if not _is_replaceable(into):
        raise RequestError(f"{into}: exists and is no export of adaptc; remove it or name another folder")
    into = into.resolve()  # a link stays a link: what it points to is replaced
    if exported.bundle is not None and into in (
        exported.bundle.path.resolve(),
        *exported.bundle.path.resolve().parents,
    ):
        raise RequestError(f"{into}: the bundle is in it; name another folder")
    try:
        with partial_folder(into) as folder:
            staged = folder / "export"
            staged.mkdir()
            for name, content in exported.files.items():
                _write(staged / name, content)
            if exported.bundle is not None:
                write_bundle(staged / exported.place, {}, exported.bundle.manifest, exported.bundle)
            _write(staged / MARK, json.dumps({"adaptc": __version__, "export": kind}, indent=1) + "\n")
            flush_folders(staged)
            replace_folder(staged, into)
            flush(into.parent)
    except OSError as error:
        raise RequestError(f"{into}: cannot write: {error.strerror or error}") from error


def _write(file: Path, content: str | bytes | Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, file)
        return
    with file.open("xb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())


def _is_replaceable(into: Path) -> bool:
    try:
        if not into.exists() or (into.is_dir() and not any(into.iterdir())):
            return True
        with contextlib.suppress(ValueError):
            said = json.loads(read_file(into / MARK, _LARGEST_MARK))
            return isinstance(said, dict) and {"adaptc", "export"} <= said.keys()
    except (OSError, BundleError):
        pass
    return False
