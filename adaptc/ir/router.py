"""Router: what picks a route for a request, and what its thresholds give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Router:
    """A trained router, calibrated.

    Attributes:
        content: Its file, as safetensors; see docs/stitch.md.
        threshold: A request takes the cheapest route whose predicted loss is at most this, in nats a token.
        levels: (share of the dearest route's cost, threshold), the cost falling as the threshold rises: what a budget
            moves along.
        bound: What was promised of the threshold, and on how many held-out prompts it was shown.
    """

    content: bytes
    threshold: float
    levels: tuple[tuple[float, float], ...]
    bound: Mapping[str, Any]
