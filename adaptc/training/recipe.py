"""The options of a training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """How gates, cheap paths or stitches are trained.

    Attributes:
        steps: Optimizer steps end to end; 0 leaves the start as it is.
        rows: Sequences in a step.
        window: Tokens of a sequence.
        learning_rate: Learning rate at its peak.
        least: Smallest share of all blocks that a step skips, 0 to 1.
        most: Largest share of all blocks that a step skips, 0 to 1.
        fits: How often gates are fitted anew on the way, at even distances.
        start: Tokens that the start, and each later fit of gates, is made on.
        measured: Held-out tokens that gates are measured on, of each kind of text, at most.
        seed: Seed of everything that is drawn.
        bfloat16: Whether to compute the model in bfloat16; gates and cheap paths are kept in float32.
    """

    steps: int = 1000
    rows: int = 4
    window: int = 256
    learning_rate: float = 1e-3
    least: float = 0.05
    most: float = 0.4
    fits: int = 2
    start: int = 8192
    measured: int = 8192
    seed: int = 0
    bfloat16: bool = True
