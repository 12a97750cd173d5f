"""Train gates and cheap paths: a frozen model learns which of its feed-forward blocks each token can do without.

    dense activations ──> cheap paths (least squares) ──> gates (predicted loss of skipping)
                                                               │
                          cheap paths end to end, KL to the dense twin  <──>  gates fitted anew, now and then

How many blocks are skipped needs no penalty: each step draws a share and takes the threshold that gives it, so gates
are trained for every budget at once, and the shares on a metadata are measured, not hoped for.

Gates are fitted, never trained by gradients through a threshold: with the straight-through estimate 1900 steps on
SmolLM2-135M left them worse than at the start, at ×1.27 of dense perplexity with 25 % skipped
(docs/results/smollm2-skip.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import fx

from adaptc.errors import PassError
from adaptc.ir.fx_graph import FxGraph
from adaptc.passes.skip_ffn import gating
from adaptc.runtime.progress import SILENT, Progress
from adaptc.training.gates.refit import refitted
from adaptc.training.gates.start import started
from adaptc.training.gates.text import CountedRows, GateText
from adaptc.training.loop import Optimization, StepLoss, Training
from adaptc.training.recipe import Recipe
from adaptc.training.text import Mask

REMEMBERED = 1 << 17
"""Number of gate logits, the latest ones, that thresholds are taken from."""

TYPICAL = 0.25
"""Share of all blocks that is skipped while gates are fitted anew."""


class GateObjective:
    """Gates and cheap paths of a frozen decoder, towards the predictions of its dense twin.

    Attributes:
        dense: The captured decoder.
        text: What is trained and measured on.
        recipe: The options of the training.
        layers: Layers with a gate, rising; those asked for until `start` or `restore` has chosen.
        rank: Inner neurons of the cheap paths; 0 for none.
        warmup: Positions at the start of a sequence where every block runs.
        device: "cpu" or "cuda".
    """

    def __init__(
        self,
        graph: FxGraph,
        text: GateText,
        recipe: Recipe,
        *,
        layers: tuple[int, ...] | None,
        rank: int,
        warmup: int,
        device: str = "cpu",
    ) -> None:
        """Begin without weights; `start` or `restore` gives them.

        Args:
            graph: A captured decoder; its weights stay as they are.
            text: What is trained and measured on, in sequences of the recipe's window.
            recipe: The options of the training.
            layers: Layers that get a gate; None for the half whose cheap paths lose least.
            rank: Inner neurons of the cheap paths; 0 for none.
            warmup: Positions at the start of a sequence where every block runs.
            device: "cpu" or "cuda".

        Raises:
            PassError: the graph has no blocks that can be skipped, or a cheap path would be larger than a block.
        """
        if warmup >= recipe.window:
            raise PassError(f"warmup: {warmup}; less than a training sequence ({recipe.window} tokens) is right")
        self.text = text
        self.recipe, self.warmup, self.device, self.rank = recipe, warmup, device, rank
        self.blocks = gating.ffn_blocks(graph)
        inner = min(graph.module.get_parameter(block.weights[0]).shape[0] for block in self.blocks)
        if rank > inner:
            raise PassError(f"cheap: low_rank({rank}); at most a block's own inner width, low_rank({inner}), is right")
        self._layers, self.layers = layers, layers or ()
        self.dense = graph
        self._weights: dict[str, torch.nn.Parameter] = {}
        self._module: fx.GraphModule | None = None
        self._logits = torch.empty(0)
        self._step = 0

    @property
    def most(self) -> float:
        """Largest share of all blocks that gates can skip."""
        return len(self.layers) / len(self.blocks)

    @property
    def module(self) -> fx.GraphModule:
        """The graph with gates, on the device; its outputs are the logits of the text and those of each gate."""
        if self._module is None:
            self._module = self._gated().module.to(self.device)
            self.dense.module.to(self.device)
            for parameter in self.dense.module.parameters():
                parameter.requires_grad_(False)
        return self._module

    def start(self, progress: Progress = SILENT) -> None:
        """Fit cheap paths and gates to what the dense model does, layer by layer."""
        layers = tuple(range(len(self.blocks))) if self._layers is None else self._layers
        places = [self.blocks[layer] for layer in layers]
        keep = len(layers) if self._layers is not None else max(1, len(layers) // 2)
        rows = self.text.first(self.recipe.start)
        seed = self.recipe.seed
        starts = started(self.dense, rows.ids, self.open(rows), places, keep, self.rank, seed, self.device, progress)
        self.layers = tuple(self.blocks.index(start.block) for start in starts)
        self._take({name: weight for start in starts for name, weight in start.weights.items()})

    def weights(self) -> Mapping[str, torch.nn.Parameter]:
        """Return gates and cheap paths by name; cheap paths alone require a gradient."""
        return self._weights

    def begin_step(self, step: int) -> None:
        """Fit the gates anew, at the steps that the recipe's `fits` says."""
        self._step = step
        fits = {self.recipe.steps * (each + 1) // (self.recipe.fits + 1) for each in range(self.recipe.fits)}
        if step in fits:
            self._refit(step)

    def backward(self, step: int, random: np.random.Generator) -> StepLoss:
        """Add the gradients of the KL to the dense twin on drawn sequences, with a drawn share of blocks skipped."""
        rows = self.text.draw(random, self.recipe.rows)
        loss, skipped = self._loss(rows, random.uniform(self.recipe.least, self.recipe.most))
        torch.autograd.backward(loss)
        return StepLoss(float(loss.detach()), skipped)

    def clip_groups(self) -> list[Sequence[torch.nn.Parameter]]:
        """Return all cheap paths as one group."""
        return [[weight for weight in self._weights.values() if weight.requires_grad]]

    def finished(self) -> bool:
        """Return False: every step is made."""
        return False

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for a checkpoint to fit."""
        layers = None if self._layers is None else list(self._layers)
        return {**asdict(self.recipe), "layers": layers, "rank": self.rank, "text": self.text.identity}

    def buffers(self) -> Mapping[str, torch.Tensor]:
        """Return the latest gate logits."""
        return {"logits": self._logits}

    def restore(self, weights: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]) -> None:
        """Take the weights and gate logits of a checkpoint; the layers are those with a gate."""
        self._take(weights)
        self._logits = buffers["logits"]
        self.layers = tuple(layer for layer, block in enumerate(self.blocks) if _gate(block) in weights)

    def _loss(self, rows: CountedRows, share: float) -> tuple[torch.Tensor, float]:
        """Return the KL to the dense twin where gates decide, and the share of all blocks skipped there."""
        module, dense = self.module, self.dense.module
        ids, positions = self.feeds(rows)
        where = torch.from_numpy(self.open(rows)).to(self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.recipe.bfloat16):
            with torch.no_grad():
                [target] = dense(ids, positions)
                if not len(self._logits):
                    _, *logits = module(ids, positions, self.levels(rows, -math.inf))
                    self._remember(logits, where)
            threshold = float(self._logits.quantile(min(0.98, share / self.most)))
            predicted, *logits = module(ids, positions, self.levels(rows, threshold))
        p, q = (F.log_softmax(each[where].float(), -1) for each in (target, predicted))
        skipped = torch.stack([(each[where] < threshold).float().mean() for each in logits]).mean()
        self._remember(logits, where)
        return F.kl_div(q, p, log_target=True, reduction="batchmean"), float(skipped) * self.most

    def _refit(self, step: int) -> None:
        """Fit the gates to what skipping costs now."""
        graph = gating.learned(self.dense, self.layers, self._weights)
        graph.module.to(self.device)
        random = np.random.default_rng((self.recipe.seed, step, 1))
        rows = self.text.draw(random, max(1, self.recipe.start // self.recipe.window))
        share = TYPICAL * len(self.blocks) / len(self.layers)
        level = float(self._logits.quantile(min(share, 0.98))) if len(self._logits) else -math.inf
        seed, levels = self.recipe.seed + step, self.levels(rows, level)
        weights = refitted(graph, rows.ids, levels, self.open(rows), seed, self.device, bfloat16=self.recipe.bfloat16)
        for name, value in weights.items():
            self._weights[name].data.copy_(value)
        self._logits = torch.empty(0)

    def _remember(self, logits: list[torch.Tensor], where: torch.Tensor) -> None:
        """Keep the latest gate logits: the thresholds of the next steps are their quantiles."""
        new = torch.stack([each[where] for each in logits]).detach().flatten().float().cpu()
        new = new[torch.randperm(len(new), generator=torch.Generator().manual_seed(self._step))[: REMEMBERED // 8]]
        self._logits = torch.cat([self._logits, new])[-REMEMBERED:]

    def _gated(self) -> FxGraph:
        """Return the graph with gates; its outputs are the logits of the text and those of each gate."""
        graph = gating.learned(self.dense, self.layers, self._weights)
        nodes = graph.module.graph.nodes
        gates = [node.args[0] for node in nodes if node.target is torch.ops.adaptc.skip.default]
        output = graph.module.graph.output_node()
        output.args = ((*output.args[0], *gates),)  # type: ignore[misc]
        graph.module.recompile()
        return graph

    def feeds(self, rows: CountedRows) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids and positions of some sequences, int64 [sequences, tokens], on the device."""
        ids = torch.from_numpy(rows.ids).to(self.device)
        return ids, torch.arange(ids.shape[1], device=self.device).expand(ids.shape)

    def open(self, rows: CountedRows) -> Mask:
        """Return where gates decide: tokens that count, after the warm-up; bool [sequences, tokens]."""
        where: Mask = rows.counts.copy()
        where[:, : self.warmup] = False
        return where

    def levels(self, rows: CountedRows, threshold: float) -> torch.Tensor:
        """Return the gates' thresholds, float32 [sequences, tokens]: -inf where they do not decide."""
        where = torch.from_numpy(self.open(rows))
        return torch.where(where, threshold, -math.inf).to(self.device)

    def _take(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace the weights; gradients are for cheap paths alone."""
        self._module = None
        self._weights = {
            name: torch.nn.Parameter(value.detach().clone().to(self.device), requires_grad=".cheap." in name)
            for name, value in weights.items()
        }


def gate_training(objective: GateObjective) -> Training[GateObjective]:
    """Return the training of gates by the recipe of their objective."""
    return Training(objective, Optimization.of(objective.recipe))


def _gate(block: gating.FfnBlock) -> str:
    return f"{block.layer}.skip.gate.weight"
