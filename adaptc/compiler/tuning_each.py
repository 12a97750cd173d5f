"""Does it pay, gate by gate? Those that do not are grouped with their neighbours, or removed.

A gate pays if it skips its block often enough: rate · gain > cost. Neighbours that do not pay one by one may pay under
one decision, the first one's: then only its gate is computed, and the others cost no more than a conditional.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.bundle.gate_verdict import GateDecision
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.budget import DENSE
from adaptc.runtime.progress import SILENT, Progress, counted

Ids = npt.NDArray[np.int64]
Ran = npt.NDArray[np.bool_]

AGREE = 0.8
"""Neighbours are grouped only if their gates say the same for at least so many tokens: else quality would suffer."""


def decide(layers: Sequence[int], ran: Ran, cost: float, branch: float, gain: float) -> list[GateDecision]:
    """Keep, group or remove each gate.

    Args:
        layers: With a gate, rising.
        ran: bool [tokens, gates], at the smallest budget.
        cost: Seconds of a gate with its conditional.
        branch: Seconds of a conditional alone.
        gain: Seconds that a skipped block saves.
    """
    rates = (~ran).mean(0) if len(ran) else np.zeros(len(layers))
    found: list[GateDecision | None] = [None] * len(layers)

    def decision(place: int, leader: int | None, verdict: str) -> GateDecision:
        micro = f"skips {rates[place]:.0%} of tokens, which saves {rates[place] * gain * 1e6:.1f} µs a token"
        return GateDecision(
            layers[place], float(rates[place]), leader, f"{verdict}: {micro} and costs {cost * 1e6:.1f} µs"
        )

    at = 0
    while at < len(layers):
        if rates[at] * gain > cost:
            found[at] = decision(at, layers[at], "kept")
            at += 1
            continue
        end = at + 1
        while end < len(layers) and rates[end] * gain <= cost and (ran[:, at] == ran[:, end]).mean() >= AGREE:
            end += 1
        count = end - at
        if count > 1 and count * rates[at] * gain > cost + (count - 1) * branch:
            for place in range(at, end):
                verdict = f"grouped, decided by the gate of layer {layers[at]}" if place > at else "kept for its group"
                found[place] = decision(place, layers[at], verdict)
        else:
            for place in range(at, end):
                found[place] = decision(place, None, "removed")
        at = end
    return [each for each in found if each is not None]


def stepwise(decoder: HostDecoder, ids: Ids, threshold: float, progress: Progress = SILENT) -> Ran:
    """Which gated blocks ran, token by token: bool [tokens after the warm-up, gates].

    Args:
        decoder: With gates.
        ids: int64 [tokens]; the first is read dense.
        threshold: What gates are compared with.
        progress: Told of each token.
    """
    decoder.prefill(0, ids[:1], threshold)
    ran = []
    for token in counted(ids[1:].tolist(), progress):
        decoder.decode([token])
        if (now := decoder.ran(0)) is not None:
            ran.append(now)
    found = decoder.skips(ran)
    assert found is not None
    return found.ran


def remeasured(
    decoder: HostDecoder, ids: Ids, blocks: int, table: Sequence[tuple[float, float]], progress: Progress = SILENT
) -> list[tuple[float, float]]:
    """A table of thresholds with the shares of all blocks that they skip now; those that skip no more are left out."""
    found: list[tuple[float, float]] = [(0.0, DENSE)]
    for _, level in counted(table, progress):
        if level > DENSE:
            ran = stepwise(decoder, ids, level)
            share = float((~ran).sum()) / (max(1, len(ran)) * blocks)
            if share > found[-1][0]:
                found.append((round(share, 5), level))
    return found


def with_fewer_gates(gates: SkipGates, table: Sequence[tuple[float, float]]) -> SkipGates:
    """Gates with thresholds that were measured again, after some were removed or grouped.

    What the model writes is not at hand here: a threshold's share of it, and that of a loss, shrinks as the same
    threshold's share of the calibration text did. The loss keeps its value, which is then the most to expect.

    Args:
        gates: With the tables from before.
        table: (share of all blocks skipped, threshold), both rising, from (0, -inf).
    """
    levels = np.array([level for _, level in table[1:]])
    shares, thresholds = _columns(gates.thresholds[1:])
    was = np.interp(levels, thresholds, shares)
    kept = np.array([share for share, _ in table[1:]]) / np.maximum(was, 1e-9)

    def shrunk(share: float, level: float) -> float:
        return round(share * float(np.interp(level, levels, kept)), 5)

    written, losses = gates.written, gates.written_loss
    if written:
        shares, thresholds = _columns(written[1:])
        losses = tuple((shrunk(share, float(np.interp(share, shares, thresholds))), loss) for share, loss in losses)
        written = tuple((shrunk(share, level), level) for share, level in written)
    return replace(gates, thresholds=tuple(table), written=written, written_loss=losses)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A table's shares and thresholds."""
    array = np.array(points, np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]
