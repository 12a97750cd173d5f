"""Where a stitch starts: the linear map from one backbone's states that is nearest to the other's.

Normal equations are summed up over the text, sequence by sequence, so memory does not grow with it. Every token counts
the same: an error is measured against the length of the state it should be, as the first token of a text carries a
state hundreds of times longer than the others.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from adaptc.passes.stitch.plan import StitchPlan
from adaptc.passes.stitch.seams import EPSILON, Seam
from adaptc.passes.stitch.states import States, run_states, state_graphs
from adaptc.runtime.progress import SILENT, Progress, counted

Ids = npt.NDArray[np.int64]
WINDOW, TOKENS, ROWS = 256, 16384, 8
RIDGE = 1e-4
"""Ridge, as a share of the mean diagonal of the normal equations: less than the noise of states, enough to solve."""


class NormalEquations:
    """The normal equations of one stitch, summed up over tokens."""

    def __init__(self, seam: Seam, device: str = "cpu") -> None:
        """Begin with no tokens.

        Args:
            seam: The place of the stitch.
            device: Device that the sums are kept on.
        """
        before, after = seam.widths
        self._seam = seam
        # On a CPU sums of products are in float64: the equations are badly conditioned.
        self._xx = torch.zeros(before + 1, before + 1, dtype=torch.float64, device=device)
        self._xy = torch.zeros(before + 1, after, dtype=torch.float64, device=device)

    def add(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Add some tokens.

        Args:
            source: States that are handed over, float [..., width before].
            target: States that the other side would have had, float [..., width after].
        """
        h, y = (each.reshape(-1, each.shape[-1]).float() for each in (source, target))
        z = normed(h)
        x = torch.cat([z, z.new_ones(len(z), 1)], 1)
        weight = y.norm(dim=1, keepdim=True).clamp_min(1e-6).reciprocal()
        if self._seam.passes:
            y = y - h
        x, y = (x * weight).double(), (y * weight).double()
        self._xx += x.T @ x
        self._xy += x.T @ y

    def solve(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the map: weight float32 [after, before] and bias float32 [after]."""
        ridge = RIDGE * self._xx.diagonal().mean() + 1e-12
        solved = torch.linalg.solve(self._xx + ridge * torch.eye(len(self._xx)).to(self._xx), self._xy)
        return solved[:-1].T.float().contiguous(), solved[-1].float().contiguous()


def normed(state: torch.Tensor) -> torch.Tensor:
    """Return what a stitch reads: the state scaled to RMS 1, in float32."""
    state = state.float()
    return state * (state.square().mean(-1, keepdim=True) + EPSILON).rsqrt()


def fitted(plan: StitchPlan, ids: Ids, progress: Progress = SILENT) -> dict[str, torch.Tensor]:
    """Return all weights of a plan: stitches by least squares, nonlinear parts and adapters at zero effect.

    Args:
        plan: What is stitched.
        ids: int64 [tokens], calibration text.
        progress: Told of stages and steps.
    """
    window = min(WINDOW, len(ids))
    rows = ids[: max(1, min(len(ids), TOKENS) // window) * window].reshape(-1, window)
    seams = plan.all_seams()
    graphs = {name: graph.loaded() for name, graph in state_graphs(plan.decoders, seams).items()}
    sums = {seam: NormalEquations(seam) for seam in seams}
    progress.stage("least squares")
    for at in counted(range(0, len(rows), ROWS), progress):
        accumulate(sums, run_states(graphs, torch.from_numpy(rows[at : at + ROWS])))
    return weights_from(plan, sums)


def weights_from(plan: StitchPlan, sums: Mapping[Seam, NormalEquations], seed: int = 0) -> dict[str, torch.Tensor]:
    """Solve every stitch, and begin everything else so that it does nothing."""
    random = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for seam, normal in sums.items():
        join = plan.joins[seam.route]
        assert join is not None
        weights[f"{seam.stem}.weight"], weights[f"{seam.stem}.bias"] = (each.cpu() for each in normal.solve())
    for name, shape in plan.shapes().items():
        if name not in weights:
            # As LoRA does: the inner matrix is drawn, the outer one is zero.
            drawn = torch.randn(shape, generator=random) / shape[-1] ** 0.5
            weights[name] = drawn if name.endswith(".a") else torch.zeros(shape)
    return weights


def accumulate(sums: Mapping[Seam, NormalEquations], states: States) -> None:
    """Count the states of some sequences in every stitch's equations."""
    for seam, normal in sums.items():
        normal.add(states[seam.source], states[seam.target])
