"""Train stitches: from the least-squares start, end to end, by what a route predicts against what the teacher predicts.

    ids ──> decoders, frozen ──> states at every cut ──> tail of each route ──> KL to the teacher's predictions
                         └──> the teacher's logits              └── trained: stitch and adapters

All routes learn in one pass: the decoders run once a step, whatever the number of routes that begin with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)

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
from adaptc.training.text import TrainingText, batches

Ids = npt.NDArray[np.int64]
TOGETHER = 1 << 27
"""Logits that KL is computed of at once: 512 MiB of float32."""

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
        self, plans: Sequence[StitchPlan], ids: Ids, recipe: Recipe, *, teacher: str | None = None, device: str = "cpu"
    ) -> None:
        """Cut the text into sequences and hold out a sixteenth of them.

        Args:
            plans: What is stitched; several may have different trunks. Route names differ.
            ids: int64 [tokens of the text].
            recipe: The options of the training.
            teacher: Name of the decoder whose predictions are learned; None for the largest.
            device: "cpu" or "cuda".

        Raises:
            PassError: the text is too short, or no route has anything to train.
        """
        self.text = TrainingText.cut(ids, recipe.window, HELD_OUT)
        self.recipe, self.device = recipe, device
        self.routes = {route: plan for plan in plans for route in plan.routes if plan.shapes_of(route)}
        if not self.routes:
            raise PassError("routes: none with a stitch; there is nothing to train")
        self.decoders = {name: decoder for plan in plans for name, decoder in plan.decoders.items()}
        self.teacher = teacher or max(self.decoders, key=lambda name: _parameters(self.decoders[name]))
        self._weights: dict[str, torch.nn.Parameter] = {}
        self._graphs: tuple[dict[str, FxGraph], dict[str, FxGraph]] | None = None
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
        rows = self.text.draw(random, self.recipe.rows)
        ids = torch.from_numpy(rows).to(self.device)
        states, target, _ = self.run_decoders(decoders, rows)
        losses = []
        for route, tail in tails.items():
            with self.autocast():
                [predicted] = tail.module(*feeds(tail, ids, self.trunk_states(states, route)))
            loss, gradient = kl(target, predicted)
            torch.autograd.backward(predicted, gradient)
            losses.append(loss)
            del predicted, gradient
        return StepLoss(sum(losses) / len(losses))

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
        self, decoders: Mapping[str, FxGraph], rows: Ids
    ) -> tuple[States, torch.Tensor, dict[str, torch.Tensor]]:
        """Run the decoders over some sequences.

        Args:
            decoders: As `graphs` gives them.
            rows: int64 [sequences, tokens].

        Returns:
            States where routes leave the decoders, the teacher's logits, and the logits of each decoder that gives any.
        """
        ids = torch.from_numpy(rows).to(self.device)
        states: States = {}
        logits: dict[str, torch.Tensor] = {}
        for name, graph in decoders.items():
            with torch.no_grad(), self.autocast():
                results = graph.module(*feeds(graph, ids))
            for output, value in zip(graph.module.meta["outputs"], results, strict=True):
                if output == LOGITS:
                    logits[name] = value
                else:
                    states[name, int(output)] = value
        return states, logits[self.teacher], logits

    def graphs(self, *, whole: bool = False) -> tuple[dict[str, FxGraph], dict[str, FxGraph]]:
        """Return the graphs of the decoders and of the routes' tails, on the device.

        Args:
            whole: Whether every decoder gives its logits, not the teacher alone.
        """
        cuts: dict[str, set[int]] = {name: set() for name in self.decoders}
        for plan in self.routes.values():
            cuts[plan.trunk.model].add(plan.trunk.end)
        decoders = {}
        for name, decoder in self.decoders.items():
            logits = whole or name == self.teacher
            if cuts[name] or logits:
                named = {str(cut): cut for cut in sorted(cuts[name])}
                decoders[name] = states_graph(decoder, named, logits=logits)
        tails = {route: tail_graph(plan, route, self._weights) for route, plan in self.routes.items()}
        for graph in (*decoders.values(), *tails.values()):
            graph.module.to(self.device)
        return decoders, tails

    def _place_decoders(self) -> None:
        """Freeze the decoders and put them on the device; matrices in bfloat16 where that is computed in.

        The embedding stays in float32, and with it the state that every block adds to.
        """
        for decoder in self.decoders.values():
            matrices = set(linear_weights(decoder.graph)) - embeddings(decoder.graph)
            for name, parameter in decoder.graph.module.named_parameters():
                parameter.requires_grad_(False)
                half = self.recipe.bfloat16 and self.device != "cpu" and name in matrices
                parameter.data = parameter.data.to(self.device, torch.bfloat16 if half else torch.float32)
            for buffer in decoder.graph.module.buffers():
                buffer.data = buffer.data.to(self.device)

    def autocast(self) -> torch.autocast:
        """Return the context that graphs are computed in: bfloat16 on a GPU, if the recipe says so."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.recipe.bfloat16 and self.device != "cpu")

    def _take(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._graphs = None
        self._weights = {name: torch.nn.Parameter(value.clone().to(self.device)) for name, value in weights.items()}


def stitch_training(objective: StitchObjective) -> Training[StitchObjective]:
    """Return the training of stitches by the recipe of their objective."""
    return Training(objective, Optimization.of(objective.recipe))


def kl(target: torch.Tensor, predicted: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Return the mean KL(target || predicted) of logits, nats a token, and its gradient at `predicted`.

    It is computed by hand and in chunks, as float32 probabilities of a whole step do not fit beside each other.

    Args:
        target: float [..., vocab].
        predicted: float [..., vocab].
    """
    p, q = (each.detach().reshape(-1, each.shape[-1]) for each in (target, predicted))
    gradient, total = torch.empty_like(q), torch.zeros((), device=q.device)
    size = max(1, TOGETHER // p.shape[1])
    for at in range(0, len(p), size):
        log_p, log_q = (F.log_softmax(each[at : at + size].float(), -1) for each in (p, q))
        chances = log_p.exp()
        total += (chances * (log_p - log_q)).sum()
        gradient[at : at + size] = (log_q.exp() - chances) / len(p)
    return float(total) / len(p), gradient.reshape(predicted.shape)


def embeddings(graph: FxGraph) -> set[str]:
    """Return the names of the tables that token ids are looked up in."""
    nodes = graph.module.graph.nodes
    tables = [node.args[0] for node in nodes if node.target is torch.ops.aten.embedding.default]
    return {str(node.target) for node in tables if isinstance(node, torch.fx.Node)}


def _parameters(decoder: LayeredDecoder) -> int:
    return sum(parameter.numel() for parameter in decoder.graph.module.parameters())
