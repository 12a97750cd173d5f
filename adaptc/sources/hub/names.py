"""Names of models on the Hugging Face hub: `org/name`, with a revision, or one GGUF file of a repository."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_FOLDER = re.compile(rf"({_ID})(?:@([\w.+/-]+))?")
_FILE = re.compile(rf"({_ID})(?:@([\w.+-]+))?/((?:[\w.+ -]+/)*[\w.+ -]+\.gguf)")


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository of the hub as a spec names it.

    Attributes:
        repository: `org/name`.
        revision: Branch, tag or commit after `@`, or None.
        file: The GGUF file that is meant, or "" for the repository as a folder.
    """

    repository: str
    revision: str | None = None
    file: str = ""


def refuse_url(name: str) -> str | None:
    """Return why a URL names no model, with the hub id that stands in it; None for what is no URL."""
    scheme, colon, rest = name.partition("://")
    if not colon or not scheme.isalpha():
        return None
    parts = rest.partition("?")[0].rstrip("/").split("/")[1:]
    file = "/".join(parts[4:]) if parts[2:3] in (["blob"], ["resolve"]) and parts[-1].endswith(".gguf") else ""
    found = hub_name("/".join([*parts[:2], file] if file else parts[:2]))
    right = "a hub id org/name" if found is None else "/".join(filter(None, (found.repository, found.file)))
    return f"{name[:200]}: a URL; {right} is right"


def hub_name(name: str) -> HubName | None:
    """Return the parts of `org/name`, `org/name@revision` or `org/name@revision/file.gguf`; None for anything else.

    It says nothing of whether there is such a repository.
    """
    if (found := _FILE.fullmatch(name)) is not None and ".." not in found[3].split("/"):
        return HubName(found[1], found[2], found[3])
    if name.endswith(".gguf") or (found := _FOLDER.fullmatch(name)) is None:
        return None
    return HubName(found[1], found[2])
