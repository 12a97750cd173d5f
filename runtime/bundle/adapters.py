"""LoRA adapters that a bundle keeps beside its weights, for requests to choose among."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = ("auto", "balanced", "base", "dense", "fast", "none", "off")
"""Words that mean something else where an adapter's name may stand."""


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """One adapter.

    Attributes:
        name: What requests call it.
        source: Where it came from, as the spec says it.
        rank: Its largest rank.
        bytes: Of its matrices, as they were read.
    """

    name: str
    source: str
    rank: int
    bytes: int


@dataclass(frozen=True, slots=True)
class AdaptedGraph:
    """The form of a decoder's graph that adds to products what adapters say, over the same weights and the same cache.

    Attributes:
        adapters: In the order by which its input `adapter` counts them, from 1.
        graph: Its name.
        dense: Name of its dense twin; "" if it has none.
    """

    adapters: tuple[AdapterRecord, ...]
    graph: str
    dense: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """What requests call the adapters, in order."""
        return tuple(each.name for each in self.adapters)


def name_fault(name: str) -> str | None:
    """What is wrong with an adapter's name, which is part of ids such as `MODEL:NAME@fast`; None if nothing is."""
    if name in _RESERVED:
        return f"{name!r} means something else in requests; a name other than {', '.join(_RESERVED)} is right"
    if _NAME.fullmatch(name) is None:
        return f"{name[:70]!r}; 1 to 64 letters, digits, '-', '_' and '.', the first a letter or digit, are right"
    return None
