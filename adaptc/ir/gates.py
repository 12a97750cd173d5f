"""Gates: which feed-forward blocks of a graph may be skipped, and what a threshold does to them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gates:
    """The gates of one graph.

    Attributes:
        policy: How they decide: "learned", "static", "cosine".
        layers: Indices of the layers with a gate, in order.
        blocks: Feed-forward blocks of the model, with a gate or without.
        warmup: Positions at the start of a sequence where every block runs.
        batch: With several rows in a step: "any", "group" or "off".
        thresholds: (share of all blocks skipped, threshold), both rising, from (0, -inf).
        rows: Most rows of a step in which blocks are skipped; with more every block runs.
        budget: Of requests that name none, 0 to 1.
    """

    policy: str
    layers: tuple[int, ...]
    blocks: int
    warmup: int
    batch: str
    thresholds: tuple[tuple[float, float], ...]
    rows: int = 1024
    budget: float = 1.0
