"""The adaptc that runs here as a wheel: an exported folder installs the same one, and nothing has to be built."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import zipfile
from importlib.util import find_spec
from pathlib import Path

from adaptc import __version__
from adaptc.runtime.errors import RequestError

WHEEL = f"adaptc-{__version__}-py3-none-any.whl"
_INFO = f"adaptc-{__version__}.dist-info"
_TAG = "Wheel-Version: 1.0\nGenerator: adaptc export\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def own_wheel() -> bytes:
    """The wheel of this adaptc, always the same bytes.

    Raises:
        RequestError: adaptc was never installed, so that nobody knows what it needs.
    """
    try:
        about = importlib.metadata.distribution("adaptc")
    except importlib.metadata.PackageNotFoundError as error:
        raise RequestError("adaptc: runs from a folder and is not installed; pip install makes it known") from error
    files = {name: path.read_bytes() for name, path in _modules()}
    # In its own checkout setuptools' folder is found first, which has another name for the same.
    needs = about.read_text("METADATA") or about.read_text("PKG-INFO")
    commands = about.read_text("entry_points.txt")
    if not needs or not commands:
        raise RequestError("adaptc: what it needs is not known; pip install makes it known")
    said = {"METADATA": needs, "WHEEL": _TAG, "entry_points.txt": commands}
    files |= {f"{_INFO}/{name}": text.encode() for name, text in said.items()}
    records = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    files[f"{_INFO}/RECORD"] = "".join(f"{each}\n" for each in [*records, f"{_INFO}/RECORD,,"]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _modules() -> list[tuple[str, Path]]:
    """Every file of the package by its name in the wheel: `passes` and `runtime` may lie elsewhere."""
    homes = {}
    for package in ("adaptc", "adaptc.passes", "adaptc.runtime"):
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        homes[package.replace(".", "/")] = Path(next(iter(spec.submodule_search_locations)))
    found = {}
    for name, home in homes.items():
        for path in home.rglob("*"):
            inside = path.relative_to(home).parts
            linked = name == "adaptc" and inside[0] in ("passes", "runtime")
            if path.is_file() and not linked and "__pycache__" not in inside:
                found[f"{name}/{'/'.join(inside)}"] = path
    return sorted(found.items())


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
