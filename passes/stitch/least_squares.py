"""Where a stitch starts: the linear map from one backbone's states that is nearest to the other's.

Normal equations are summed up over the text, sequence by sequence, so memory does not grow with it. Every token counts
the same: an error is measured against the length of the state it should be, as the first token of a text carries a
state hundreds of times longer than the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from adaptc.ir.graph import FxGraph
from adaptc.passes.stitch.seams import EPSILON, Seam
from adaptc.passes.stitch.slices import Backbone, states_graph
from adaptc.runtime.bundle.names import HIDDEN, INPUT_IDS, POSITION_IDS, THRESHOLD

if TYPE_CHECKING:
    from adaptc.passes.stitch.paths import Layout

Ids = npt.NDArray[np.int64]
WINDOW, TOKENS, ROWS = 256, 16384, 8
RIDGE = 1e-4
"""Of the mean diagonal of the normal equations: less than the noise of states, enough to solve them."""


class Normal:
    """Normal equations of one stitch, summed up."""

    def __init__(self, seam: Seam, device: str = "cpu") -> None:
        """Nothing seen yet.

        Args:
            seam: Which.
            device: Where sums are kept.
        """
        before, after = seam.widths
        self._seam = seam
        # On a CPU sums of products are in float64: the equations are badly conditioned.
        self._xx = torch.zeros(before + 1, before + 1, dtype=torch.float64, device=device)
        self._xy = torch.zeros(before + 1, after, dtype=torch.float64, device=device)

    def add(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Count some tokens.

        Args:
            source: float [..., width before], what is handed over.
            target: float [..., width after], what the other side would have seen.
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
        """The map: weight float32 [after, before] and bias [after]."""
        ridge = RIDGE * self._xx.diagonal().mean() + 1e-12
        solved = torch.linalg.solve(self._xx + ridge * torch.eye(len(self._xx)).to(self._xx), self._xy)
        return solved[:-1].T.float().contiguous(), solved[-1].float().contiguous()


def normed(state: torch.Tensor) -> torch.Tensor:
    """What a stitch reads: the state with RMS 1, in float32."""
    state = state.float()
    return state * (state.square().mean(-1, keepdim=True) + EPSILON).rsqrt()


def fitted(plan: Layout, ids: Ids, stage: Callable[[str], None] = lambda _: None) -> dict[str, torch.Tensor]:
    """All weights of a layout: stitches by least squares, nonlinear parts and adapters at zero effect.

    Args:
        plan: What is stitched.
        ids: int64 [tokens], calibration text.
        stage: Told what is being done.
    """
    window = min(WINDOW, len(ids))
    rows = ids[: max(1, min(len(ids), TOKENS) // window) * window].reshape(-1, window)
    seams = [seam for route in plan.routes for seam in plan.seams(route) if seam is not None]
    graphs = state_graphs(plan.backbones, seams)
    sums = {seam: Normal(seam) for seam in seams}
    stage("least squares")
    for at in range(0, len(rows), ROWS):
        accumulate(sums, run_states(graphs, torch.from_numpy(rows[at : at + ROWS])))
    return weights_from(plan, sums)


def weights_from(plan: Layout, sums: Mapping[Seam, Normal], seed: int = 0) -> dict[str, torch.Tensor]:
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


States = dict[tuple[str, int], torch.Tensor]


def state_graphs(backbones: Mapping[str, Backbone], seams: Iterable[Seam]) -> dict[str, FxGraph]:
    """For each backbone with a seam, a graph that also gives its states there, named by layer."""
    wanted: dict[str, set[int]] = {}
    for seam in seams:
        for backbone, layer in (seam.source, seam.target):
            wanted.setdefault(backbone, set()).add(layer)
    return {
        name: states_graph(backbones[name], {str(layer): layer for layer in sorted(layers)}, logits=False)
        for name, layers in wanted.items()
    }


def run_states(graphs: Mapping[str, FxGraph], ids: torch.Tensor) -> States:
    """States of every backbone for some sequences; every block runs.

    Args:
        graphs: As `state_graphs` gives them.
        ids: int64 [sequences, tokens].
    """
    found: States = {}
    for name, graph in graphs.items():
        with torch.no_grad():
            states = graph.module(*feeds(graph, ids))
        layers = [int(each) for each in graph.module.meta["outputs"]]
        found |= {(name, layer): state for layer, state in zip(layers, states, strict=True)}
    return found


def feeds(graph: FxGraph, ids: torch.Tensor, hidden: torch.Tensor | None = None) -> list[torch.Tensor]:
    """What a graph is fed for whole sequences, in its order; gates run every block."""
    values = {
        INPUT_IDS: ids,
        HIDDEN: hidden,
        POSITION_IDS: torch.arange(ids.shape[1], device=ids.device).expand(ids.shape),
        THRESHOLD: torch.full(ids.shape, float("-inf"), device=ids.device),
    }
    return [value for name in graph.inputs if (value := values[name]) is not None]


def accumulate(sums: Mapping[Seam, Normal], states: States) -> None:
    """Count the states of some sequences in every stitch's equations."""
    for seam, normal in sums.items():
        normal.add(states[seam.source], states[seam.target])
