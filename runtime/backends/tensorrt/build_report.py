"""What a build decided about gates, and the times that it decided by; the JSON beside a flavour's engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.budget import share_of

MODES = ("on_device", "one_step_late")
"""Execution modes: the GPU follows gates in the step that computes them, or the host does in the step after it."""

RENAMED = {"regions": "on_device", "static": "one_step_late"}
"""Names of modes in earlier versions, and what they are called now."""

WORTH = 0.99
"""What gates, or decisions that come a step late, must take at most of the time without: two runs on an H200, hours
apart, differed by 1 % (docs/results/tensorrt-h200.md)."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of a step of one row as a session takes it, the host's part included.

    Attributes:
        gates: How many there are.
        dense: No gate is asked, every block runs.
        on_device: Execution mode "on_device": every gated block runs, none does.
        one_step_late: The same in mode "one_step_late", each mask a new one: how many come again depends on the text.
        fixed: No gated block runs, by a mask that was captured, and no gate is asked: what skipping is worth at most.
    """

    gates: int
    dense: float
    on_device: tuple[float, float]
    one_step_late: tuple[float, float]
    fixed: float

    def both(self, mode: str) -> tuple[float, float]:
        """Times of a step in an execution mode: with every gated block, and with none."""
        return self.on_device if mode == "on_device" else self.one_step_late

    def at(self, mode: str, share: float) -> float:
        """Time of a step with this share of the gated blocks skipped; a straight line, as it was on an H200."""
        run, none = self.both(mode)
        return run + (none - run) * share

    def cost(self, mode: str) -> float:
        """Time that one gate adds to a step."""
        return (self.both(mode)[0] - self.dense) / self.gates

    def saved(self, mode: str) -> float:
        """Time that one skipped block saves, its gate's cost not counted."""
        run, none = self.both(mode)
        return (run - none) / self.gates


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What the newest build of a flavour decided.

    Attributes:
        mode: See `MODES`; a session runs in it.
        why: In a few words.
        dense: Whether gates do not pay, so that requests which name no budget run every block.
        times: What was timed; None if nothing was.
    """

    mode: str
    why: str
    dense: bool = False
    times: StepTimes | None = None

    @property
    def line(self) -> str:
        """For people."""
        return f"mode {self.mode}{', dense unless a budget is asked for' if self.dense else ''}: {self.why}"


def judged(times: StepTimes, gates: SkipGates, modes: Sequence[str] = MODES) -> BuildReport:
    """The quickest mode at the share of blocks that the gates skip by default, and whether it beats running all.

    Gates whose default is to skip nothing are judged at the most that they skip: whoever names a budget gets that.

    Args:
        times: Times of a step.
        gates: What they skip.
        modes: To choose from. A later one must be worth it: its decisions come late.
    """
    share = share_of(gates, gates.budget if gates.budget < 1 else 0.0)
    gated = min(1.0, share * gates.blocks / max(1, len(gates.layers)))
    best, *others = modes
    for mode in others:
        best = mode if times.at(mode, gated) < WORTH * times.at(best, gated) else best
    pays = times.at(best, gated) < WORTH * times.dense
    each = ", ".join(f"{_ms(times.at(mode, gated))} {mode}" for mode in MODES)
    why = (
        f"gates {'pay' if pays else 'do not pay'}: a step with {share:.0%} of the blocks skipped takes {each}, "
        f"{_ms(times.dense)} dense; in mode {best} a gate costs {times.cost(best) * 1e6:.1f} µs and a skipped block "
        f"saves {times.saved(best) * 1e6:.1f}"
    )
    return BuildReport(best, why, not pays, times)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"
