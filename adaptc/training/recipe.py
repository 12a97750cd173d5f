"""How gates are trained, and how far a training is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train.

    Attributes:
        steps: Optimizer steps end to end; 0 leaves the start as it is.
        rows: Sequences in a step.
        window: Tokens of a sequence.
        learning_rate: Of cheap paths, at its peak.
        least: Smallest share of all blocks that a step skips.
        most: Largest.
        fits: How often gates are fitted anew on the way, at even distances.
        start: Tokens that the start, and each later fit of gates, is made on.
        seed: Of everything drawn.
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
    seed: int = 0
    bfloat16: bool = True


@dataclass(frozen=True, slots=True)
class Progress:
    """One step.

    Attributes:
        step: Its number, from 1.
        steps: Of so many.
        loss: KL(dense || gated), nats a token after the warm-up.
        share: Share of all blocks that were skipped there.
    """

    step: int
    steps: int
    loss: float
    share: float
