"""What `adaptc build` made of a bundle on one machine: files beside the bundle's own, named by an index of their own.

The manifest does not name them, since they belong to a machine and a bundle without them is whole. `built.json` does,
with their hashes and the hash of the manifest that they were built for. What it does not name is never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adaptc.runtime.bundle.files.replace import write_whole
from adaptc.runtime.bundle.manifest import FileRecord
from adaptc.runtime.bundle.names import MANIFEST
from adaptc.runtime.bundle.reading import check_file, open_file, read_checked, read_file, read_through
from adaptc.runtime.bundle.strict_json import dumps, loads
from adaptc.runtime.errors import BundleError

BUILT = "built.json"
_LARGEST = 1 << 26  # bytes, of the index and of a manifest


@dataclass(frozen=True, slots=True)
class BuiltFiles:
    """The index.

    Attributes:
        manifest: sha256 of the manifest of the bundle that was built.
        files: Size and hash of each file by its name, relative to the bundle.
    """

    manifest: str
    files: dict[str, FileRecord]


def built_files(bundle: Path) -> Mapping[str, FileRecord]:
    """The files that were built for a bundle, by name; none if they were built for another one.

    Args:
        bundle: The bundle's folder.

    Raises:
        BundleError: the index is damaged.
    """
    try:
        index = loads(BuiltFiles, read_file(bundle / BUILT, _LARGEST))
    except FileNotFoundError:
        return {}
    except (OSError, BundleError) as error:
        raise BundleError(f"{bundle / BUILT}: damaged ({error}); remove it and run adaptc build again") from error
    return index.files if index.manifest == _manifest_hash(bundle) else {}


def read_built(bundle: Path, name: str) -> bytes | None:
    """The content of a file that was built; None if it was not.

    Raises:
        BundleError: it is not as it was built.
    """
    record = built_files(bundle).get(name)
    return None if record is None else read_checked(bundle, name, record, verify=True)


def check_built(bundle: Path, name: str) -> None:
    """Compare a file that was built with its hash, if there is one.

    Raises:
        BundleError: it is not as it was built.
    """
    record = built_files(bundle).get(name)
    if record is not None:
        check_file(bundle, name, record, verify=True)


def add_built(bundle: Path, names: Iterable[str], without: Iterable[str] = ()) -> None:
    """Name files that are there now; what was built for another manifest, or is gone, is named no longer.

    Args:
        bundle: The bundle's folder.
        names: Of the files, relative to it.
        without: Files that shall be named no longer.

    Raises:
        EngineError: the index cannot be written.
        OSError: a file cannot be read.
    """
    known: Mapping[str, FileRecord] = {}
    with contextlib.suppress(BundleError):  # a damaged index names nothing
        known = built_files(bundle)
    files = {name: record for name, record in known.items() if name not in without and (bundle / name).exists()}
    for name in names:
        with open_file(bundle / name) as stream:
            files[name] = read_through(stream, None)
    write_whole(bundle / BUILT, dumps(BuiltFiles(_manifest_hash(bundle), files), indent=1).encode())


def carry_built(bundle: Path, into: Path) -> None:
    """Take over what was built for a bundle into one with another manifest, of whose files engines read the same.

    Args:
        bundle: The folder of the bundle that was built.
        into: The other bundle's folder, on the same disk and with its manifest.

    Raises:
        OSError: a file cannot be linked or copied.
    """
    known: Mapping[str, FileRecord] = {}
    with contextlib.suppress(BundleError):  # a damaged index names nothing
        known = built_files(bundle)
    files = {name: record for name, record in known.items() if (bundle / name).is_file()}
    for name in files:
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            (into / name).hardlink_to(bundle / name)  # whoever writes such a file writes a new one in its place
        except OSError:
            shutil.copyfile(bundle / name, into / name)
    if files:
        write_whole(into / BUILT, dumps(BuiltFiles(_manifest_hash(into), files), indent=1).encode())


def _manifest_hash(bundle: Path) -> str:
    """The sha256 of a bundle's manifest; "" if there is none."""
    try:
        return hashlib.sha256(read_file(bundle / MANIFEST, _LARGEST)).hexdigest()
    except OSError:
        return ""
