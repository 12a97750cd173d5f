"""Skip gates: which feed-forward blocks of a graph may be skipped, and what a threshold does to them."""

from __future__ import annotations

from dataclasses import dataclass

from adaptc.runtime.bundle.strict_json import ExtendedFloat


@dataclass(frozen=True, slots=True)
class SkipGates:
    """The skip gates of one graph, in a program and in a bundle's manifest.

    Attributes:
        policy: How the gates decide: "learned", "static", "cosine".
        layers: Indices of the layers with a gate, in order.
        blocks: Number of feed-forward blocks of the model, with a gate or without.
        warmup: Number of positions at the start of a sequence where every block runs.
        batch: What a step of several rows does: with "rows" each row runs a block if it wants it, whatever the others
            do; "any" runs it for all rows if one of them wants it, "group" if they want it on average, "off" always.
            In a program, "auto" leaves it to the target.
        thresholds: (share of all blocks skipped, threshold), both rising, from (0, -inf).
        rows: Most rows of a step in which blocks are skipped, as measured; with more every block runs.
        budget: Default budget for requests without one, 0 to 1.
        dense: Name of the same graph without gates, for steps that skip nothing; "" if there is none.
        written: As `thresholds`, for tokens that the model writes, of which one threshold skips more than of text that
            it reads; empty where that was not measured, and `thresholds` serve for both.
        written_loss: (share of all blocks skipped, expected KL from the dense model in nats a token) for tokens that
            the model writes, both rising from (0, 0); empty where that was not measured.
    """

    policy: str
    layers: tuple[int, ...]
    blocks: int
    warmup: int
    batch: str
    thresholds: tuple[tuple[float, ExtendedFloat], ...]
    rows: int = 1024
    budget: float = 1.0
    dense: str = ""
    written: tuple[tuple[float, ExtendedFloat], ...] = ()
    written_loss: tuple[tuple[float, float], ...] = ()

    @property
    def most(self) -> float:
        """Share of tokens for which a gate skips its block at the smallest budget, a mean over the gates."""
        return self.thresholds[-1][0] * self.blocks / len(self.layers) if self.thresholds else 0.0
