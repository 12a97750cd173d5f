"""Train gates and cheap paths: a frozen model learns which of its feed-forward blocks each token can do without.

    dense activations ──> cheap paths (least squares) ──> gates (predicted loss of skipping)
                                                               │
                          cheap paths end to end, KL to the dense twin  <──>  gates fitted anew, now and then

How many blocks are skipped needs no penalty: each step draws a share and takes the threshold that gives it, so gates
are trained for every budget at once, and the shares on a card are measured, not hoped for.

Gates are fitted, never trained by gradients through a threshold: with the straight-through estimate 1900 steps on
SmolLM2-135M left them worse than at the start, at ×1.27 of dense perplexity with 25 % skipped
(docs/results/smollm2-skip.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import fx

from adaptc.errors import LoadError, PassError
from adaptc.ir.gates_file import Card
from adaptc.ir.graph import FxGraph
from adaptc.passes.skip_ffn import gating
from adaptc.passes.skip_ffn.importance import levels
from adaptc.training.checkpoint import Checkpoint, Moments, load_checkpoint, save_checkpoint
from adaptc.training.gates.refit import refitted
from adaptc.training.gates.start import started
from adaptc.training.recipe import Progress, Recipe

Ids = npt.NDArray[np.int64]
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
"""Shares of all blocks whose thresholds go onto the card, as far as there are gates for them."""

REMEMBERED = 1 << 17
"""Latest gate logits that thresholds are taken from."""

TYPICAL = 0.25
"""Share of all blocks that are skipped while gates are fitted anew."""

MEASURED = 8192
"""Held-out tokens that a card is measured on."""


Told = Callable[[Progress], None]
Stage = Callable[[str], None]


class Trainer:
    """A gated graph in training."""

    def __init__(
        self,
        graph: FxGraph,
        ids: Ids,
        recipe: Recipe,
        *,
        layers: tuple[int, ...] | None,
        rank: int,
        warmup: int,
        device: str = "cpu",
    ) -> None:
        """Cut the text into sequences; the last eighth of them is held out.

        Args:
            graph: A captured decoder; its weights stay as they are.
            ids: int64 [tokens of the text].
            recipe: How to train.
            layers: Which layers get a gate; None for the half whose cheap paths lose least.
            rank: Inner neurons of the cheap paths; 0 for none.
            warmup: Positions at the start of a sequence where every block runs.
            device: "cpu" or "cuda".

        Raises:
            PassError: the text is too short, the graph has no blocks that can be skipped, or a cheap path would be
                larger than a block.
        """
        if warmup >= recipe.window:
            raise PassError(f"warmup: {warmup}; less than a training sequence ({recipe.window} tokens) is right")
        rows = len(ids) // recipe.window
        if rows < 8:
            raise PassError(
                f"a calibration text of {len(ids)} tokens; at least {8 * recipe.window} are needed for training, "
                "and some hundred thousand are right"
            )
        whole = ids[: rows * recipe.window].reshape(rows, recipe.window)
        self.held_out, self.train = whole[: rows // 8], whole[rows // 8 :]
        self.recipe, self.warmup, self.device, self.rank = recipe, warmup, device, rank
        self.blocks = gating.ffn_blocks(graph)
        inner = min(graph.module.get_parameter(block.weights[0]).shape[0] for block in self.blocks)
        if rank > inner:
            raise PassError(f"cheap: low_rank({rank}); at most a block's own inner width, low_rank({inner}), is right")
        self._layers, self.layers = layers, layers or ()
        self.dense = graph
        self.weights: dict[str, torch.nn.Parameter] = {}
        self.step = 0
        self.curve: list[tuple[int, float]] = []
        self._logits = torch.empty(0)
        self._moments: Mapping[str, Moments] = {}

    def start(self, stage: Stage = lambda _: None) -> None:
        """Fit cheap paths and gates to what the dense model does, layer by layer."""
        ids = self.train[: max(1, self.recipe.start // self.recipe.window)]
        layers = tuple(range(len(self.blocks))) if self._layers is None else self._layers
        places = [self.blocks[layer] for layer in layers]
        keep = len(layers) if self._layers is not None else max(1, len(layers) // 2)
        starts = started(self.dense, ids, places, keep, self.rank, self.warmup, self.recipe.seed, self.device, stage)
        self.layers = tuple(self.blocks.index(start.block) for start in starts)
        self._take({name: weight for start in starts for name, weight in start.weights.items()})

    def run(self, told: Told = lambda _: None, checkpoint: Path | None = None, every: int = 25) -> None:
        """Train end to end, from where it is.

        Args:
            told: Told of each step.
            checkpoint: Written every so many steps, so that a killed run goes on from there.
            every: How many.
        """
        module, dense = self._gated().module.to(self.device), self.dense.module.to(self.device)
        for parameter in dense.parameters():
            parameter.requires_grad_(False)
        cheap = self._cheap()
        if not cheap:  # without cheap paths there is nothing but gates, and those are fitted
            return
        optimizer = torch.optim.AdamW(cheap.values(), betas=(0.9, 0.98), weight_decay=0.0)
        self._restore(optimizer)
        fits = {self.recipe.steps * (each + 1) // (self.recipe.fits + 1) for each in range(self.recipe.fits)}
        while self.step < self.recipe.steps:
            if self.step in fits:
                self._fit()
            for group in optimizer.param_groups:
                group["lr"] = self._rate()
            random = np.random.default_rng((self.recipe.seed, self.step))
            rows = self.train[random.choice(len(self.train), min(self.recipe.rows, len(self.train)), replace=False)]
            share = random.uniform(self.recipe.least, self.recipe.most)
            loss, skipped = self._loss(module, dense, rows, share)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(cheap.values(), 1.0)
            optimizer.step()
            self.step += 1
            self.curve.append((self.step, round(float(loss.detach()), 5)))
            told(Progress(self.step, self.recipe.steps, self.curve[-1][1], skipped))
            if checkpoint is not None and (self.step % every == 0 or self.step == self.recipe.steps):
                self._save(checkpoint, optimizer)

    def card(self, model: str, sha256: str, about: Mapping[str, Any], stage: Stage = lambda _: None) -> Card:
        """Measure thresholds and perplexity on held-out text and say what was done.

        Args:
            model: Where the model came from.
            sha256: Of its files.
            about: Data and versions, for readers.
            stage: Told what is being done.
        """
        module = self._gated().module.to(self.device)
        dense, logits = self._measured(module, -math.inf)
        top = len(self.layers) / len(self.blocks)
        thresholds: list[tuple[float, float]] = []
        perplexity = [(0.0, 1.0)]
        for share in [each for each in SHARES if each <= top]:
            stage(f"measure {share:.0%}")
            for _ in range(2):  # what is skipped early moves what later gates say
                threshold = float(logits.quantile(min(share / top, 0.995)))
                found, logits = self._measured(module, threshold)
            real = float((logits < threshold).float().mean()) * top
            if not thresholds or (threshold > thresholds[-1][1] and real > thresholds[-1][0]):
                thresholds.append((round(real, 5), threshold))
                perplexity.append((round(real, 5), round(math.exp(found - dense), 5)))
        training = {
            "recipe": asdict(self.recipe),
            "tokens": self.train.size,
            "held_out_tokens": self.held_out.size,
            "curve": [list(point) for point in self.curve[:: max(1, len(self.curve) // 50)]],
            **about,
        }
        return Card(
            model,
            sha256,
            self.layers,
            len(self.blocks),
            self.rank,
            self.warmup,
            tuple(thresholds),
            tuple(perplexity),
            training,
        )

    def load(self, checkpoint: Path) -> bool:
        """Go on from a checkpoint of the same recipe and text; False if there is none.

        Raises:
            LoadError: it is damaged, or of another run.
        """
        if not checkpoint.exists():
            return False
        found = load_checkpoint(checkpoint)
        if found.run != self._identity():
            raise LoadError(f"{checkpoint}: of another recipe, text or version; --restart begins anew")
        self.step, self.curve, self._logits = found.step, list(found.curve), found.logits
        self._take(found.weights)
        self.layers = tuple(layer for layer, block in enumerate(self.blocks) if _gate(block) in found.weights)
        self._moments = found.moments
        return True

    def _loss(
        self, module: fx.GraphModule, dense: fx.GraphModule, rows: Ids, share: float
    ) -> tuple[torch.Tensor, float]:
        """KL to the dense twin after the warm-up, and the share of all blocks skipped there."""
        ids, positions = self._feeds(rows)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.recipe.bfloat16):
            with torch.no_grad():
                [wanted] = dense(ids, positions)
                if not len(self._logits):
                    _, *said = module(ids, positions, self._levels(rows, -math.inf))
                    self._remember(said)
            top = len(self.layers) / len(self.blocks)
            threshold = float(self._logits.quantile(min(0.98, share / top)))
            given, *said = module(ids, positions, self._levels(rows, threshold))
        after = slice(self.warmup, None)
        p, q = (F.log_softmax(each[:, after].flatten(0, 1).float(), -1) for each in (wanted, given))
        skipped = torch.stack([(each[:, after] < threshold).float().mean() for each in said]).mean()
        self._remember(said)
        return F.kl_div(q, p, log_target=True, reduction="batchmean"), float(skipped) * top

    def _fit(self) -> None:
        """Fit gates to what skipping costs now."""
        graph = gating.learned(self.dense, self.layers, self.weights)
        graph.module.to(self.device)
        random = np.random.default_rng((self.recipe.seed, self.step, 1))
        rows = min(len(self.train), max(1, self.recipe.start // self.recipe.window))
        ids = self.train[random.choice(len(self.train), rows, replace=False)]
        share = TYPICAL * len(self.blocks) / len(self.layers)
        level = float(self._logits.quantile(min(share, 0.98))) if len(self._logits) else -math.inf
        thresholds = self._levels(ids[:1], level)[0]
        found = refitted(
            graph,
            ids,
            thresholds,
            self.warmup,
            self.recipe.seed + self.step,
            self.device,
            bfloat16=self.recipe.bfloat16,
        )
        for name, value in found.items():
            self.weights[name].data.copy_(value)
        self._logits = torch.empty(0)

    def _remember(self, said: list[torch.Tensor]) -> None:
        """Keep the latest logits: the thresholds of the next steps are their quantiles."""
        new = torch.stack([each[:, self.warmup :] for each in said]).detach().flatten().float().cpu()
        new = new[torch.randperm(len(new), generator=torch.Generator().manual_seed(self.step))[: REMEMBERED // 8]]
        self._logits = torch.cat([self._logits, new])[-REMEMBERED:]

    def _measured(self, module: fx.GraphModule, threshold: float) -> tuple[float, torch.Tensor]:
        """Mean negative log likelihood after the warm-up on held-out text, and what the gates said there.

        In float32, as thresholds are compared when a bundle runs.
        """
        total, count, logits = 0.0, 0, []
        for rows in _parts(self.held_out[: max(1, MEASURED // self.recipe.window)], self.recipe.rows):
            ids, positions = self._feeds(rows)
            with torch.no_grad():
                given, *said = module(ids, positions, self._levels(rows, threshold))
            scores = given[:, self.warmup : -1].float().flatten(0, 1)
            total += float(F.cross_entropy(scores, ids[:, self.warmup + 1 :].flatten(), reduction="sum"))
            count += len(scores)
            logits.append(torch.stack([each[:, self.warmup :] for each in said]).flatten().float().cpu())
        return total / count, torch.cat(logits)

    def _gated(self) -> FxGraph:
        """The graph with gates, which gives what they say beside the logits."""
        graph = gating.learned(self.dense, self.layers, self.weights)
        nodes = graph.module.graph.nodes
        gates = [node.args[0] for node in nodes if node.target is torch.ops.adaptc.skip.default]
        output = graph.module.graph.output_node()
        output.args = ((*output.args[0], *gates),)  # type: ignore[misc]
        graph.module.recompile()
        return graph

    def _feeds(self, rows: Ids) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.from_numpy(rows).to(self.device)
        return ids, torch.arange(rows.shape[1], device=self.device).expand(rows.shape)

    def _levels(self, rows: Ids, threshold: float) -> torch.Tensor:
        return levels(rows.shape, threshold, self.warmup).to(self.device)

    def _rate(self) -> float:
        """Learning rate: up in the first twentieth, then down along a cosine."""
        done = self.step / self.recipe.steps
        return self.recipe.learning_rate * min(1.0, done * 20 + 0.05) * (0.5 + 0.49 * math.cos(math.pi * done))

    def _take(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Have these weights; gradients are for cheap paths alone."""
        self.weights = {
            name: torch.nn.Parameter(value.detach().clone().to(self.device), requires_grad=".cheap." in name)
            for name, value in weights.items()
        }

    def _cheap(self) -> dict[str, torch.nn.Parameter]:
        return {name: weight for name, weight in self.weights.items() if ".cheap." in name}

    def _save(self, path: Path, optimizer: torch.optim.Optimizer) -> None:
        states = {name: optimizer.state[weight] for name, weight in self._cheap().items()}
        moments = {name: (state["exp_avg"], state["exp_avg_sq"]) for name, state in states.items()}
        weights: dict[str, torch.Tensor] = dict(self.weights)
        save_checkpoint(
            Checkpoint(self._identity(), self.step, tuple(self.curve), weights, moments, self._logits), path
        )

    def _restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the optimizer what it knew when the checkpoint was written."""
        for name, (first, second) in self._moments.items():
            optimizer.state[self.weights[name]] = {
                "step": torch.tensor(float(self.step)),
                "exp_avg": first.to(self.device),
                "exp_avg_sq": second.to(self.device),
            }

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be gone on from."""
        text = int(self.train.sum()) % (1 << 32)
        layers = None if self._layers is None else list(self._layers)
        return {**asdict(self.recipe), "layers": layers, "rank": self.rank, "text": [self.train.size, text]}


def _gate(block: gating.FfnBlock) -> str:
    return f"{block.layer}.skip.gate.weight"


def _parts(ids: Ids, rows: int) -> Iterator[Ids]:
    yield from (ids[at : at + rows] for at in range(0, len(ids), rows))
