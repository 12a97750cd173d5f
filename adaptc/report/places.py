"""Where in a graph something stands, by its module path: in which layer, and in what part of it."""

from __future__ import annotations

import re

from adaptc.ir.marks import LAYER

KINDS = ("attention", "feed-forward", "gate", "other")
"""What a layer is made of, in the order in which it runs."""

BEFORE, AFTER = "before layers", "after layers"

_KINDS = {"self_attn": "attention", "attn": "attention", "attention": "attention", "skip": "gate"} | dict.fromkeys(
    ("mlp", "feed_forward", "block_sparse_moe"), "feed-forward"
)
_LAYER = re.compile(rf"{LAYER.pattern}\.?(?P<rest>[^/]*)")


def place_of(path: str, name: str = "", *, head: bool = False) -> tuple[str, str]:
    """The part of a graph and the kind of what stands at a module path; `name`, of a weight, where the path says less.

    Returns:
        A layer as "STEM INDEX"; of what is in no layer `AFTER` if `head`, else `BEFORE`; and one of `KINDS`.
    """
    match = _LAYER.match(path) or _LAYER.match(name)
    if match is None:
        return (AFTER if head else BEFORE), "other"
    return f"{match['stem']} {match['index']}", _KINDS.get(match["rest"].partition(".")[0], "other")
