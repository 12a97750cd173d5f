"""How a bundle is loaded: options of the right type and range, and only those that its kind of bundle has."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

from adaptc.runtime.backends.backend import Device
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.errors import RequestError
from adaptc.runtime.model.budget import check_budget
from adaptc.runtime.model.plan import check_budget_fits, is_modal
from adaptc.runtime.validation import check_count, shown

_MOST_THREADS = 1024  # more is a slip of the keyboard, and starting them would exhaust the machine
_MOST_ROWS = 1 << 16  # sequences, or tokens of a prompt at once
_MOST_BYTES = 1 << 50
_DEVICES = ("auto", "cpu", "gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Options of `load`, each in its range; None where one was not given. `load` says what they mean."""

    device: str = "auto"
    threads: int | None = None
    batch: int | None = None
    chunk: int | None = None
    cache_bytes: int | None = None
    verify: bool = True
    budget: float | None = None

    def check(self, bundle: Bundle, device: Device) -> None:
        """Refuse what has no meaning for a bundle: an option that did nothing would be taken for one that did.

        Args:
            bundle: An opened bundle.
            device: Where its backend runs it.

        Raises:
            RequestError: naming the option, and what the bundle is.
        """
        manifest = bundle.manifest
        if self.device not in ("auto", device):
            name = manifest.target.backend
            raise RequestError(
                f"device: {self.device!r}; {bundle.path} was compiled for {name}: its device is {device!r}"
            )
        text = "it answers each input by itself and writes no text"
        meaningless = {
            "threads": "it runs on a GPU" if device == "gpu" else "",
            "batch": text if is_modal(manifest) else "",
            "chunk": text if is_modal(manifest) else "",
            "budget": text if is_modal(manifest) else "",
            "cache_bytes": "" if manifest.modal else "it has no encoder whose features could be kept",
        }
        for option in fields(self):
            why = meaningless.get(option.name, "")
            if why and getattr(self, option.name) is not None:
                raise RequestError(f"{option.name}: has no meaning for {bundle.path}: {why}; leave it out")
        check_budget_fits(bundle, self.budget)


def load_options(
    *,
    device: str = "auto",
    threads: int | None = None,
    batch: int | None = None,
    chunk: int | None = None,
    cache_bytes: int | None = None,
    verify: bool = True,
    budget: float | None = None,
) -> LoadOptions:
    """Check options by themselves; `LoadOptions.check` asks whether a bundle has them.

    Raises:
        RequestError: one is of another type, or out of range.
    """
    if not isinstance(device, str) or device not in _DEVICES:
        raise RequestError(f"device: {shown(device)}; there are: {', '.join(_DEVICES)}")
    if not isinstance(verify, bool):
        raise RequestError(f"verify: {shown(verify)}; True or False is needed")
    return LoadOptions(
        device=device,
        threads=None if threads is None else check_count("threads", threads, most=_MOST_THREADS),
        batch=None if batch is None else check_count("batch", batch, most=_MOST_ROWS),
        chunk=None if chunk is None else check_count("chunk", chunk, most=_MOST_ROWS),
        cache_bytes=None if cache_bytes is None else check_count("cache_bytes", cache_bytes, _MOST_BYTES, least=0),
        verify=verify,
        budget=None if budget is None else check_budget(budget),
    )


def folder_of(path: object) -> Path:
    """The folder that a caller names.

    Raises:
        RequestError: it is no name of a folder.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(name := os.fspath(path), str):
        raise RequestError(f"path: {shown(path)}; the name of a bundle's folder is needed")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise RequestError(f"path: {shown(name)}; a name that this system can have is needed") from None
    if "\0" in name or not name:
        raise RequestError(f"path: {shown(name)}; the name of a bundle's folder is needed")
    return Path(name)
