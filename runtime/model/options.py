"""How a request runs through a model that can run in more than one way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from adaptc.runtime.model.inserts import Inserts


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What a decoder must know of a request besides its tokens.

    Attributes:
        budget: How much of the model runs, from 0 (cheapest) to 1 (dense). None runs what the gates' own budget says,
            and takes the route that the router's calibrated threshold picks.
        route: The route of a stitched bundle; None lets its router pick.
        ceiling: The most that any budget counts for, the bundle's own included, 0 to 1: less than 1 under load.
        scored: Whether tokens are of a given text, which is scored; not if the model writes them.
        adapter: The adapter of a bundle that keeps some; None for the weights as they are.
        inserts: Encodes the prompt's images when the prompt is read; None for a prompt of text alone.
    """

    budget: float | None = None
    route: str | None = None
    ceiling: float = 1.0
    scored: bool = False
    adapter: str | None = None
    inserts: Callable[[], Inserts] | None = field(default=None, compare=False)


NO_OPTIONS = RequestOptions()
"""The options of a request that names none."""
