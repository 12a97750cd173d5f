"""The libraries that adaptc uses, by its own metadata, and which of them are installed."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass

EXTRAS = ("compile", "cpu", "serve", "gpu", "tensorrt", "rtx")


@dataclass(frozen=True, slots=True)
class Package:
    """A library adaptc uses.

    Attributes:
        name: As pip calls it.
        extra: The extra of adaptc that needs it; None for adaptc itself.
        wanted: Lowest version that will do, or None.
        installed: The version that is installed, or None.
    """

    name: str
    extra: str | None
    wanted: str | None
    installed: str | None

    @property
    def ok(self) -> bool:
        """Whether it is installed and new enough."""
        return self.installed is not None and (self.wanted is None or number(self.installed) >= number(self.wanted))

    @property
    def install(self) -> str:
        """The line that installs it."""
        want = f"{self.name}>={self.wanted}" if self.wanted else self.name
        return f"pip install '{f'adaptc[{self.extra}]' if self.extra else want}'"


def packages() -> tuple[Package, ...]:
    """Return every library adaptc's metadata names, with what is installed; none if adaptc itself is not."""
    try:
        requirements = importlib.metadata.requires("adaptc") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    by_extra: dict[tuple[str | None, str], Package] = {}
    for text in requirements:
        name = re.match(r"[\w.-]+", text)
        extra = re.search(r"extra == [\"']([\w-]+)[\"']", text)
        least = re.search(r">=([\w.]+)", text.partition(";")[0])
        if name is None or name[0] == "adaptc" or (extra is not None and extra[1] not in EXTRAS):
            continue
        package = Package(name[0], extra[1] if extra else None, least[1] if least else None, version(name[0]))
        by_extra[package.extra, package.name] = package
    return tuple(by_extra.values())


def version(name: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def number(text: str) -> tuple[int, ...]:
    """Return a version's leading numbers, for comparing: `2.13.0+cpu` is (2, 13, 0)."""
    release = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, release[0].split("."))) if release else ()
