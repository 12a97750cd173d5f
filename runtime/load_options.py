"""How a bundle is loaded: options of the right type and range, and only those that its kind of bundle has."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from adaptc.runtime.backends.backend import Device
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.errors import RequestError
from adaptc.runtime.generation.load_control import LoadTargets
from adaptc.runtime.generation.option_checks import UNPAID
from adaptc.runtime.model.budget import check_budget, check_loss
from adaptc.runtime.model.plan import check_budget_fits, is_encoder, is_modal
from adaptc.runtime.validation import check_count, check_elements, shown

_DEVICES = ("auto", "cpu", "cuda", "gpu")
_CUDA = re.compile(r"cuda:(\d{1,3})")
_MOST_ROWS = 1 << 16  # sequences, or tokens of a prompt at once
_RANGES = {
    "threads": (1, 1024),  # more is a slip of the keyboard, and starting them would exhaust the machine
    "batch": (1, _MOST_ROWS),
    "chunk": (1, _MOST_ROWS),
    "cache_bytes": (0, 1 << 50),
    "prefix_bytes": (0, 1 << 50),
}
"""The least and the most of each whole number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Options of `load`, each in its range; None where one was not given. `load` says what they mean.

    Raises:
        RequestError: one is of another type, or out of range.
    """

    device: str = "auto"
    threads: int | None = None
    batch: int | None = None
    chunk: int | None = None
    cache_bytes: int | None = None
    prefix_bytes: int | None = None
    verify: bool = True
    budget: float | None = None
    max_loss: float | None = None
    unpaid: str | None = None
    load_targets: LoadTargets | None = None
    routes: Sequence[str] | None = None
    speculate: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.device, str) or (self.device not in _DEVICES and not _CUDA.fullmatch(self.device)):
            raise RequestError(f"device: {shown(self.device)}; there are: {', '.join(_DEVICES)}, cuda:1 and so on")
        if not isinstance(self.verify, bool):
            raise RequestError(f"verify: {shown(self.verify)}; True or False is needed")
        for name, (least, most) in _RANGES.items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, check_count(name, value, most, least))
        if self.budget is not None:
            object.__setattr__(self, "budget", check_budget(self.budget))
        if self.max_loss is not None:
            object.__setattr__(self, "max_loss", check_loss(self.max_loss))
        if self.unpaid is not None and self.unpaid not in UNPAID:
            raise RequestError(f"unpaid: {shown(self.unpaid)}; there are: {', '.join(UNPAID)}")
        if self.load_targets is not None and not isinstance(self.load_targets, LoadTargets):
            raise RequestError(f"load_targets: {shown(self.load_targets)}; a LoadTargets is needed")
        if self.speculate is not None and not isinstance(self.speculate, str):
            raise RequestError(f"speculate: {shown(self.speculate)}; 'auto', 'off' or the name of a drafter is needed")
        if self.routes is not None:
            names = tuple(check_elements("routes", self.routes, "a list of names"))
            if not names or len(set(map(str, names))) < len(names):
                raise RequestError(f"routes: {shown(list(names))}; one name or more, each once, are needed")
            object.__setattr__(self, "routes", names)

    def check(self, bundle: Bundle, device: Device) -> None:
        """Refuse what has no meaning for a bundle: an option that did nothing would be taken for one that did.

        Args:
            bundle: An opened bundle.
            device: Where its backend runs it.

        Raises:
            RequestError: naming the option, and what the bundle is.
        """
        manifest = bundle.manifest
        if self.device != "auto" and device_kind(self.device) != device:
            name = manifest.target.backend
            raise RequestError(
                f"device: {self.device!r}; {bundle.path} was compiled for {name}: its device is {device!r}"
            )
        text = "it answers each input by itself and writes no text"
        alone = is_modal(manifest) or is_encoder(manifest)
        meaningless = {
            "threads": "it runs on a GPU" if device == "gpu" else "",
            "batch": text if alone else "",
            "chunk": text if alone else "",
            "prefix_bytes": text if alone else "it runs on a GPU" if device == "gpu" else "",
            "budget": text if alone else "",
            "max_loss": text if alone else "",
            "unpaid": text if alone else "",
            "load_targets": text if alone else "",
            "speculate": text if alone else "",
            "routes": "it runs on a GPU, which loads all of them" if device == "gpu" else "",
            "cache_bytes": "" if manifest.modal else "it has no encoder whose features could be kept",
        }
        for option in fields(self):
            why = meaningless.get(option.name, "")
            if why and getattr(self, option.name) is not None:
                raise RequestError(f"{option.name}: has no meaning for {bundle.path}: {why}; leave it out")
        switch = manifest.switch
        known = () if switch is None else tuple(switch.routes)
        for name in self.routes or ():
            if name not in known:
                there = f"there are: {', '.join(known)}" if known else f"{bundle.path} has no routes: leave it out"
                raise RequestError(f"routes: {shown(name)}; {there}")
        check_budget_fits(bundle, self.budget, routes=self.routes)
        check_budget_fits(bundle, self.max_loss, "max_loss", self.routes)
        check_budget_fits(bundle, self.load_targets, "load_targets", self.routes)


def for_cpu_only(options: LoadOptions) -> bool:
    """Whether an option is given that has a meaning on a CPU only."""
    given = (options.threads, options.prefix_bytes, options.routes, options.speculate)
    return any(each is not None for each in given)


def device_kind(device: str) -> Device:
    """The kind of a device that a caller named."""
    return "cpu" if device == "cpu" else "gpu"


def device_index(device: str) -> int:
    """Which GPU: 0 if a caller names none."""
    found = _CUDA.fullmatch(device)
    return int(found[1]) if found is not None else 0


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
