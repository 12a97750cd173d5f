"""Did the skip gates pay? What was timed on the machine that compiled, and what became of each gate."""

from __future__ import annotations

from dataclasses import dataclass

from adaptc.runtime.bundle.skip_gates import SkipGates


@dataclass(frozen=True, slots=True)
class Payoff:
    """Times of a decode step, in seconds, batch 1: differences are medians of what was timed right after each other.

    Attributes:
        dense: Without gates, every block runs.
        run: With gates, when every block runs.
        skipped: With gates, when every block with a gate is skipped.
        gates: Number of gates.
        shared: With all blocks under the first gate's decision, when every block runs; 0 if it was not timed.
    """

    dense: float
    run: float
    skipped: float
    gates: int
    shared: float = 0.0

    @property
    def branch(self) -> float:
        """Seconds of a conditional without a gate of its own; never more than one with it."""
        if self.gates < 2 or not self.shared:
            return self.cost
        return min(self.cost, max(0.0, self.shared - self.dense - self.cost) / (self.gates - 1))

    @property
    def cost(self) -> float:
        """Seconds a gate and its conditional take; 0 if it cannot be distinguished from noise."""
        return max(0.0, self.run - self.dense) / self.gates

    @property
    def gain(self) -> float:
        """Seconds that a skipped block saves, its gate's cost not counted."""
        return (self.run - self.skipped) / self.gates

    @property
    def break_even(self) -> float:
        """Share of tokens for which a gate must skip its block to pay for itself; above 1 it never does."""
        return self.cost / self.gain if self.gain > 0 else float("inf")

    def pays_from(self, gates: SkipGates) -> float:
        """Share of all blocks from which skipping is quicker than running without gates; above 1 it never is."""
        return self.break_even * len(gates.layers) / gates.blocks

    def verdict(self, gates: SkipGates) -> tuple[bool, str]:
        """Whether these gates pay at their smallest budget, and a sentence that says why."""
        most = gates.most
        micro = f"a gate costs {self.cost * 1e6:.1f} µs a token, a skipped block saves {self.gain * 1e6:.1f} µs"
        if most > self.break_even:
            return True, f"{micro}: it pays above {self.break_even:.0%} skipped, and up to {most:.0%} are"
        needed = f"above {self.break_even:.0%} skipped" if self.break_even <= 1 else "never"
        return False, f"{micro}: it pays {needed}, and at most {most:.0%} are"


@dataclass(frozen=True, slots=True)
class GateDecision:
    """What became of one gate.

    Attributes:
        layer: Its layer.
        rate: Share of tokens that it skipped at the smallest budget, on calibration text.
        leader: The layer whose gate decides; its own if it was kept, None if it was removed.
        why: A sentence.
    """

    layer: int
    rate: float
    leader: int | None
    why: str


@dataclass(frozen=True, slots=True)
class RowTimes:
    """Times of a step of several rows.

    Attributes:
        rows: Number of rows.
        adaptive: Seconds at half the budget where rows decide together; 0 if that was not timed.
        dense: Seconds without gates.
        apart: Seconds at half the budget where each row decides for itself; 0 if that was not timed.
    """

    rows: int
    adaptive: float
    dense: float
    apart: float = 0.0


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """What was measured of a graph's gates, and what came of it.

    Attributes:
        payoff: The times.
        pays: Whether gates were kept.
        why: A sentence.
        each: What became of each gate, if they were judged one by one.
        rows: By rows of a step, rising, as far as it was timed.
    """

    payoff: Payoff
    pays: bool
    why: str
    each: tuple[GateDecision, ...] = ()
    rows: tuple[RowTimes, ...] = ()
