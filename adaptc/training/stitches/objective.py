"""Train stitches: from the least-squares start, end to end, by what a route predicts against what the teacher predicts.

    ids ──> decoders, frozen ──> states at every cut ──> tail of each route ──> KL to the teacher's predictions
                         └──> the teacher's logits              └── trained: stitch and adapters
                              where a token counts

All routes learn in one pass: the decoders run once a step, whatever the number of routes that begin with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from adaptc.errors import PassError
from adaptc.ir.fx_graph import FxGraph
from adaptc.passes.quantize.linears import linear_weights
from adaptc.passes.stitch.graphs import tail_graph
from adaptc.passes.stitch.least_squares import NormalEquations, accumulate, weights_from
from adaptc.passes.stitch.plan import StitchPlan
from adaptc.passes.stitch.slices import LayeredDecoder, states_graph
from adaptc.passes.stitch.states import States, feeds, run_states, state_graphs
from adaptc.runtime.bundle.names import LOGITS
from adaptc.runtime.progress import SILENT, Progress, counted
from adaptc.training.loop import Optimization, StepLoss, Training
from adaptc.training.recipe import Recipe
from adaptc.training.stitches.predictor import Predictor, cut_before_head, divergence
from adaptc.training.text import TrainingText, batches, predicts

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

HELD_OUT = 16
"""One sequence of so many is held out."""


class StitchObjective:
    """Stitches and adapters of routes, towards the predictions of a teacher.

    Attributes:
        text: What is trained and measured on.
        recipe: The options of the training.
        device: "cpu" or "cuda".
        routes: The plan that each route is part of, by route.
        decoders: The frozen decoders, by name.
        teacher: Name of the decoder whose predictions are learned.
    """

    def __init__(
        self,
        plans: Sequence[StitchPlan],
        text: TrainingText,
        recipe: Recipe,
        *,
        teacher: str | None = None,
        device: str = "cpu",
    ) -> None:
        """Freeze the decoders and put them on the device.

        Args:
            plans: What is stitched; several may have different trunks. Route names differ.
            text: What is trained and measured on.
            recipe: The options of the training.
            teacher: Name of the decoder whose predictions are learned; None for the largest.
            device: "cpu" or "cuda".

        Raises:
            PassError: no route has anything to train.
        """
        self.text, self.recipe, self.device = text, recipe, device
        self.routes = {route: plan for plan in plans for route in plan.routes if plan.shapes_of(route)}
        if not self.routes:
            raise PassError("routes: none with a stitch; there is nothing to train")
        self.decoders = {name: decoder for plan in plans for name, decoder in plan.decoders.items()}
        self.teacher = teacher or max(self.decoders, key=lambda name: _parameters(self.decoders[name]))
        self._weights: dict[str, torch.nn.Parameter] = {}
        self._graphs: tuple[dict[str, Predictor], dict[str, Predictor]] | None = None
        self._place_decoders()

    def start(self, progress: Progress = SILENT) -> None:
        """Fit every stitch by least squares; adapters and nonlinear parts begin without effect."""
        ids = self.text.first(self.recipe.start)
        seams = [seam for route, plan in self.routes.items() for seam in plan.seams(route) if seam is not None]
        sums = {seam: NormalEquations(seam, self.device) for seam in seams}
        progress.stage(f"least squares, {ids.size} tokens")
        decoders = state_graphs(self.decoders, seams)
        for rows in counted(list(batches(ids, self.recipe.rows)), progress):
            with self.autocast():
                accumulate(sums, run_states(decoders, torch.from_numpy(rows).to(self.device)))
        weights: dict[str, torch.Tensor] = {}
        for plan in dict.fromkeys(self.routes.values()):
            own = {seam: normal for seam, normal in sums.items() if self.routes[seam.route] is plan}
            weights |= weights_from(plan, own, self.recipe.seed)
        self._take(weights)

    def weights(self) -> Mapping[str, torch.nn.Parameter]:
        """Return the weights of stitches and adapters, by name."""
        return self._weights

    def begin_step(self, step: int) -> None:
        """Do nothing: gradients train everything."""

    def backward(self, step: int, random: np.random.Generator) -> StepLoss:
        """Add the gradients of each route's KL to the teacher on drawn sequences; the loss is their mean."""
        if self._graphs is None:
            self._graphs = self.graphs()
        decoders, tails = self._graphs
        rows, counts = self.text.draw(random, self.recipe.rows)
        ids, where = self.placed(rows, counts)
        states, reads = self.run_decoders(decoders, ids)
        with torch.no_grad():
            target = decoders[self.teacher].logits(reads.pop(self.teacher)[where])
        losses = []
        for route, tail in tails.items():
            with self.autocast():
                [read] = tail.graph.module(*feeds(tail.graph, ids, self.trunk_states(states, route)))
            counted = read[where]
            loss, gradient = divergence(target, tail, counted.detach())
            torch.autograd.backward(counted, gradient)
            losses.append(loss)
            del read, counted, gradient
        return StepLoss(sum(losses) / len(losses))

    def placed(self, rows: Ids, counts: Mask) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sequences and the positions whose next token counts, int64 and bool, on the device."""
        return torch.from_numpy(rows).to(self.device), torch.from_numpy(predicts(counts)).to(self.device)

    def clip_groups(self) -> list[Sequence[torch.nn.Parameter]]:
        """Return each route's weights as a group: a route that has gone astray does not slow the others."""
        return [[self._weights[name] for name in plan.shapes_of(route)] for route, plan in self.routes.items()]

    def finished(self) -> bool:
        """Return False: every step is made."""
        return False

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for a checkpoint to fit."""
        shapes = {name: list(shape) for r, plan in self.routes.items() for name, shape in plan.shapes_of(r).items()}
        return {**asdict(self.recipe), "shapes": shapes, "text": self.text.identity, "teacher": self.teacher}

    def buffers(self) -> Mapping[str, torch.Tensor]:
        """Return nothing: the weights are all there is."""
        return {}

    def restore(self, weights: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]) -> None:
        """Take the weights of a checkpoint."""
        self._take(weights)

    def trunk_states(self, states: States, route: str) -> torch.Tensor:
        """Return the states that a route's trunk gives, float [sequences, tokens, width]."""
        trunk = self.routes[route].trunk
        return states[trunk.model, trunk.end]

    def run_decoders(
        self, decoders: Mapping[str, Predictor], ids: torch.Tensor
    ) -> tuple[States, dict[str, torch.Tensor]]:
        """Run the decoders over some sequences.

        Args:
            decoders: As `graphs` gives them.
            ids: int64 [sequences, tokens].

        Returns:
            States where routes leave the decoders; and what the head reads of each decoder that predicts,
            float [sequences, tokens, width].
        """
        states: States = {}
        reads: dict[str, torch.Tensor] = {}
        for name, decoder in decoders.items():
            with torch.no_grad(), self.autocast():
                results = decoder.graph.module(*feeds(decoder.graph, ids))
            for output, value in zip(decoder.graph.module.meta["outputs"], results, strict=True):
                if output == LOGITS:
                    reads[name] = value
                else:
                    states[name, int(output)] = value
        return states, reads

    def graphs(self, *, whole: bool = False) -> tuple[dict[str, Predictor], dict[str, Predictor]]:
        """Return the decoders and the routes' tails, on the device.

        Args:
            whole: Whether every decoder predicts, not the teacher alone.
        """
        cuts: dict[str, set[int]] = {name: set() for name in self.decoders}
        for plan in self.routes.values():
            cuts[plan.trunk.model].add(plan.trunk.end)
        decoders = {}
        for name, decoder in self.decoders.items():
            logits = whole or name == self.teacher
            if cuts[name] or logits:
                named = {str(cut): cut for cut in sorted(cuts[name])}
                graph = states_graph(decoder, named, logits=logits)
                decoders[name] = self._predictor(graph) if logits else Predictor(graph, None)
        tails = {route: self._predictor(tail_graph(plan, route, self._weights)) for route, plan in self.routes.items()}
        for predictor in (*decoders.values(), *tails.values()):
            predictor.graph.module.to(self.device)
        return decoders, tails

    def _predictor(self, graph: FxGraph) -> Predictor:
        """Cut a graph before its head, which computes in bfloat16 where the rest does."""
        return cut_before_head(graph, torch.bfloat16 if self._half else None)

    @property
    def _half(self) -> bool:
        return self.recipe.bfloat16 and self.device != "cpu"

    def _place_decoders(self) -> None:
        """Freeze the decoders and put them on the device; matrices in bfloat16 where that is computed in.

        The embedding stays in float32, and with it the state that every block adds to.
        """
        for decoder in self.decoders.values():
            matrices = set(linear_weights(decoder.graph)) - embeddings(decoder.graph)
            for name, parameter in decoder.graph.module.named_parameters():
                parameter.requires_grad_(False)
                half = torch.bfloat16 if self._half and name in matrices else torch.float32
                parameter.data = parameter.data.to(self.device, half)
            for buffer in decoder.graph.module.buffers():
                buffer.data = buffer.data.to(self.device)

    def autocast(self) -> torch.autocast:
        """Return the context that graphs are computed in: bfloat16 on a GPU, if the recipe says so."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self._half)

    def _take(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._graphs = None
        self._weights = {name: torch.nn.Parameter(value.clone().to(self.device)) for name, value in weights.items()}


def stitch_training(objective: StitchObjective) -> Training[StitchObjective]:
    """Return the training of stitches by the recipe of their objective."""
    return Training(objective, Optimization.of(objective.recipe))


def embeddings(graph: FxGraph) -> set[str]:
    """Return the names of the tables that token ids are looked up in."""
    nodes = graph.module.graph.nodes
    tables = [node.args[0] for node in nodes if node.target is torch.ops.aten.embedding.default]
    return {str(node.target) for node in tables if isinstance(node, torch.fx.Node)}


def _parameters(decoder: LayeredDecoder) -> int:
    return sum(parameter.numel() for parameter in decoder.graph.module.parameters())
