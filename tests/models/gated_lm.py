"""A model one can compute by hand, with gates: a block with gate g runs where g reaches the row's threshold."""

from __future__ import annotations

import math

import numpy as np

from adaptc.runtime import SkipGates
from adaptc.runtime.backends.engine import Arrays
from adaptc.runtime.backends.fake import FakeEngine
from adaptc.runtime.bundle.manifest import TensorSpec
from tests.models.history_lm import HistoryLm, decoder_spec

LOGITS = (-1.0, 0.0, 1.0)
"""What each gate says, whatever the token."""

THRESHOLDS = ((0.0, -math.inf), (0.25, -0.5), (0.5, 0.5))
"""Six blocks of which three have a gate: 1 and 2 of 6 are skipped between the gates' values."""


def gates(warmup: int = 4, batch: str = "any") -> SkipGates:
    return SkipGates("static", (1, 2, 3), 6, warmup, batch, THRESHOLDS)


class GatedLm:
    """`HistoryLm` with gates that change nothing but what they say.

    Attributes:
        engine: Computes it.
        spec: What it expects.
        thresholds: Of each run, as a list of lists.
    """

    def __init__(self, *, apart: bool = False) -> None:
        """`apart`: whether each row decides for itself, and says so."""
        inner = HistoryLm(decoder_spec())
        run = inner.engine.function
        self.spec = inner.spec
        self.thresholds: list[list[list[float]]] = []

        def gated(feeds: Arrays, outputs: Arrays) -> None:
            assert run is not None
            run(feeds, outputs)
            threshold = feeds["threshold"]
            assert threshold.shape == feeds["input_ids"].shape
            self.thresholds.append(threshold.tolist())
            wants = np.array(LOGITS) >= threshold[..., None]
            outputs["ran"][...] = wants.any(1) if apart else wants.any((0, 1))

        self.engine = FakeEngine(
            (*inner.engine.inputs, TensorSpec("threshold", "float32", ("batch", "tokens"))),
            (*inner.engine.outputs, TensorSpec("ran", "bool", ("batch", 3) if apart else (3,))),
            gated,
        )
