"""Train stitches: from the least-squares start, end to end, by what a route predicts against what the teacher predicts.

    ids ──> backbones, frozen ──> states at every cut ──> tail of each route ──> KL to the teacher's predictions
                          └──> the teacher's logits              └── trained: stitch and adapters

All routes learn in one pass: the backbones run once a step, whatever the number of routes that begin with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)

from adaptc.errors import LoadError, PassError
from adaptc.ir.graph import FxGraph
from adaptc.passes.quantize.linears import linear_weights
from adaptc.passes.stitch.least_squares import Normal, States, accumulate, feeds, run_states, state_graphs, weights_from
from adaptc.passes.stitch.paths import Layout, tail_graph
from adaptc.passes.stitch.slices import Backbone, states_graph
from adaptc.runtime.bundle.names import LOGITS
from adaptc.training.checkpoint import Checkpoint, Moments, load_checkpoint, save_checkpoint
from adaptc.training.recipe import Progress, Recipe

Ids = npt.NDArray[np.int64]
Told = Callable[[Progress], None]
Stage = Callable[[str], None]
TOGETHER = 1 << 27
"""Logits that KL looks at in one piece: 512 MiB of float32."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How well something predicts a text.

    Attributes:
        log_perplexity: Mean negative log likelihood of a token, nats.
        kl: Mean KL(teacher || it), nats a token.
    """

    log_perplexity: float
    kl: float


class StitchTrainer:
    """Routes in training.

    Attributes:
        routes: The layout that each route is part of, by route.
        weights: Of stitches and adapters, by name.
        step: Steps done.
        curve: (step, mean KL of all routes).
    """

    def __init__(
        self, plans: Sequence[Layout], ids: Ids, recipe: Recipe, *, teacher: str | None = None, device: str = "cpu"
    ) -> None:
        """Cut the text into sequences; the last sixteenth of them is held out.

        Args:
            plans: What is stitched; several may begin with different trunks. Route names differ.
            ids: int64 [tokens of the text].
            recipe: How to train.
            teacher: The backbone whose predictions are learned; None for the largest.
            device: "cpu" or "cuda".

        Raises:
            PassError: the text is too short, or no route has anything to train.
        """
        rows = len(ids) // recipe.window
        if rows < 16:
            raise PassError(
                f"a text of {len(ids)} tokens; at least {16 * recipe.window} are needed for training, and some hundred "
                "thousand are right"
            )
        whole = ids[: rows * recipe.window].reshape(rows, recipe.window)
        self.held_out, self.train = whole[: rows // 16], whole[rows // 16 :]
        self.recipe, self.device = recipe, device
        self.routes = {route: plan for plan in plans for route in plan.routes if plan.shapes_of(route)}
        if not self.routes:
            raise PassError("routes: none with a stitch; there is nothing to train")
        self.backbones = {name: backbone for plan in plans for name, backbone in plan.backbones.items()}
        self.teacher = teacher or max(self.backbones, key=lambda name: _parameters(self.backbones[name]))
        self.weights: dict[str, torch.nn.Parameter] = {}
        self.step = 0
        self.curve: list[tuple[int, float]] = []
        self.losses: dict[str, float] = {}
        self._moments: Mapping[str, Moments] = {}
        self._place_backbones()

    def start(self, stage: Stage = lambda _: None) -> None:
        """Fit every stitch by least squares; adapters and nonlinear parts begin without effect."""
        ids = self.train[: max(1, self.recipe.start // self.recipe.window)]
        seams = [seam for route, plan in self.routes.items() for seam in plan.seams(route) if seam is not None]
        sums = {seam: Normal(seam, self.device) for seam in seams}
        stage(f"least squares, {ids.size} tokens")
        backbones = state_graphs(self.backbones, seams)
        for rows in _parts(ids, self.recipe.rows):
            with self._autocast():
                accumulate(sums, run_states(backbones, torch.from_numpy(rows).to(self.device)))
        weights: dict[str, torch.Tensor] = {}
        for plan in dict.fromkeys(self.routes.values()):
            own = {seam: normal for seam, normal in sums.items() if self.routes[seam.route] is plan}
            weights |= weights_from(plan, own, self.recipe.seed)
        self._take(weights)

    def run(self, told: Told = lambda _: None, checkpoint: Path | None = None, every: int = 25) -> None:
        """Train end to end, from where it is.

        Args:
            told: Told of each step.
            checkpoint: Written every so many steps, so that a killed run goes on from there.
            every: How many.
        """
        backbones, tails = self._modules()
        parameters = {route: self.parameters(route) for route in self.routes}
        optimizer = torch.optim.AdamW(list(self.weights.values()), betas=(0.9, 0.98), weight_decay=0.0)
        self._restore(optimizer)
        while self.step < self.recipe.steps:
            for group in optimizer.param_groups:
                group["lr"] = self._rate()
            random = np.random.default_rng((self.recipe.seed, self.step))
            rows = self.train[random.choice(len(self.train), min(self.recipe.rows, len(self.train)), replace=False)]
            states, wanted, _ = self._seen(backbones, rows)
            optimizer.zero_grad(set_to_none=True)
            for route, tail in tails.items():
                with self._autocast():
                    [given] = tail.module(
                        *feeds(tail, torch.from_numpy(rows).to(self.device), self._base(states, route))
                    )
                loss, gradient = kl(wanted, given)
                torch.autograd.backward(given, gradient)
                # Route by route: one that has gone astray does not slow the others.
                torch.nn.utils.clip_grad_norm_(parameters[route], 1.0)
                self.losses[route] = loss
                del given, gradient
            optimizer.step()
            self.step += 1
            self.curve.append((self.step, round(sum(self.losses.values()) / len(self.losses), 5)))
            told(Progress(self.step, self.recipe.steps, self.curve[-1][1], 0.0))
            if checkpoint is not None and (self.step % every == 0 or self.step == self.recipe.steps):
                self._note(optimizer)
                self._save(checkpoint)
        self._note(optimizer)

    def measure(self, ids: Ids | None = None) -> tuple[dict[str, Quality], dict[str, Quality]]:
        """How well each backbone by itself and each route predicts a text.

        Args:
            ids: int64 [sequences, tokens]; None for what was held out.

        Returns:
            By the names of backbones; by the names of routes.
        """
        rows = self.held_out if ids is None else ids
        backbones, tails = self._modules(whole=True)
        alone, routed = ({name: [0.0, 0.0] for name in names} for names in (self.backbones, self.routes))
        for part in _parts(rows, self.recipe.rows):
            with torch.no_grad():
                states, wanted, others = self._seen(backbones, part)
                for name, logits in others.items():
                    _count(alone[name], wanted, logits, part)
                del others
                for route, tail in tails.items():
                    with self._autocast():
                        inputs = feeds(tail, torch.from_numpy(part).to(self.device), self._base(states, route))
                        [given] = tail.module(*inputs)
                    _count(routed[route], wanted, given, part)
        count = rows.shape[0] * (rows.shape[1] - 1)
        backbone_losses, routes = (
            {name: Quality(loss / count, divergence / rows.size) for name, (loss, divergence) in sums.items()}
            for sums in (alone, routed)
        )
        return backbone_losses, routes

    def keep(self, routes: Sequence[str]) -> None:
        """Go on with some of the routes only."""
        self.routes = {route: plan for route, plan in self.routes.items() if route in routes}
        names = {name for route, plan in self.routes.items() for name in plan.shapes_of(route)}
        self.weights = {name: weight for name, weight in self.weights.items() if name in names}
        self.losses = {route: loss for route, loss in self.losses.items() if route in routes}

    def parameters(self, route: str) -> list[torch.nn.Parameter]:
        """What is trained of a route."""
        return [self.weights[name] for name in self.routes[route].shapes_of(route)]

    def load(self, checkpoint: Path) -> bool:
        """Go on from a checkpoint of the same recipe, routes and text; False if there is none.

        Raises:
            LoadError: it is damaged, or of another run.
        """
        if not checkpoint.exists():
            return False
        found = load_checkpoint(checkpoint)
        if found.run != self._identity():
            raise LoadError(f"{checkpoint}: of another recipe, text, routes or version; --restart begins anew")
        self.step, self.curve = found.step, list(found.curve)
        self._take(found.weights)
        self._moments = found.moments
        return True

    def _seen(
        self, backbones: Mapping[str, FxGraph], rows: Ids
    ) -> tuple[States, torch.Tensor, dict[str, torch.Tensor]]:
        """States of the backbones where routes leave them, the teacher's logits, and all backbones' that give any."""
        ids = torch.from_numpy(rows).to(self.device)
        states: States = {}
        logits: dict[str, torch.Tensor] = {}
        for name, graph in backbones.items():
            with torch.no_grad(), self._autocast():
                found = graph.module(*feeds(graph, ids))
            for output, value in zip(graph.module.meta["outputs"], found, strict=True):
                if output == LOGITS:
                    logits[name] = value
                else:
                    states[name, int(output)] = value
        return states, logits[self.teacher], logits

    def _base(self, states: States, route: str) -> torch.Tensor:
        base = self.routes[route].base
        return states[base.backbone, base.last]

    def _modules(self, *, whole: bool = False) -> tuple[dict[str, FxGraph], dict[str, FxGraph]]:
        """Backbones that give states where routes leave them (and logits: the teacher's, or all), and tails."""
        cuts: dict[str, set[int]] = {name: set() for name in self.backbones}
        for plan in self.routes.values():
            cuts[plan.base.backbone].add(plan.base.last)
        backbones = {}
        for name, backbone in self.backbones.items():
            logits = whole or name == self.teacher
            if cuts[name] or logits:
                named = {str(cut): cut for cut in sorted(cuts[name])}
                backbones[name] = states_graph(backbone, named, logits=logits)
        tails = {route: tail_graph(plan, route, self.weights) for route, plan in self.routes.items()}
        for graph in (*backbones.values(), *tails.values()):
            graph.module.to(self.device)
        return backbones, tails

    def _place_backbones(self) -> None:
        """Freeze the backbones and put them on the device; matrices in bfloat16 where that is computed in.

        The embedding stays in float32, and with it the state that every block adds to.
        """
        for backbone in self.backbones.values():
            matrices = set(linear_weights(backbone.graph)) - embeddings(backbone.graph)
            for name, parameter in backbone.graph.module.named_parameters():
                parameter.requires_grad_(False)
                half = self.recipe.bfloat16 and self.device != "cpu" and name in matrices
                parameter.data = parameter.data.to(self.device, torch.bfloat16 if half else torch.float32)
            for buffer in backbone.graph.module.buffers():
                buffer.data = buffer.data.to(self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.recipe.bfloat16 and self.device != "cpu")

    def _rate(self) -> float:
        """Learning rate: up in the first twentieth, then down along a cosine."""
        done = self.step / self.recipe.steps
        return self.recipe.learning_rate * min(1.0, done * 20 + 0.05) * (0.5 + 0.49 * math.cos(math.pi * done))

    def _take(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.weights = {name: torch.nn.Parameter(value.clone().to(self.device)) for name, value in weights.items()}

    def _note(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep what the optimizer knows, for a checkpoint or a later run."""
        states = {name: optimizer.state[weight] for name, weight in self.weights.items() if weight in optimizer.state}
        self._moments = {name: (state["exp_avg"], state["exp_avg_sq"]) for name, state in states.items()}

    def _save(self, path: Path) -> None:
        weights: dict[str, torch.Tensor] = dict(self.weights)
        curve = tuple(self.curve)
        found = Checkpoint(self._identity(), self.step, curve, weights, self._moments, torch.empty(0))
        save_checkpoint(found, path)

    def _restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the optimizer what it knew before."""
        for name, (first, second) in self._moments.items():
            if name not in self.weights:
                continue  # of a route that was given up
            optimizer.state[self.weights[name]] = {
                "step": torch.tensor(float(self.step)),
                "exp_avg": first.to(self.device),
                "exp_avg_sq": second.to(self.device),
            }

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be gone on from."""
        text = int(self.train.sum()) % (1 << 32)
        shapes = {name: list(shape) for r, plan in self.routes.items() for name, shape in plan.shapes_of(r).items()}
        return {**asdict(self.recipe), "shapes": shapes, "text": [self.train.size, text], "teacher": self.teacher}


def kl(wanted: torch.Tensor, given: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Mean KL(wanted || given) of logits, nats a token, and its gradient at `given`.

    By hand and piece by piece, as a vocabulary's float32 probabilities for a whole step do not fit beside each other.

    Args:
        wanted: float [..., vocab].
        given: float [..., vocab].
    """
    p, q = (each.detach().reshape(-1, each.shape[-1]) for each in (wanted, given))
    gradient, total = torch.empty_like(q), torch.zeros((), device=q.device)
    size = max(1, TOGETHER // p.shape[1])
    for at in range(0, len(p), size):
        log_p, log_q = (F.log_softmax(each[at : at + size].float(), -1) for each in (p, q))
        chances = log_p.exp()
        total += (chances * (log_p - log_q)).sum()
        gradient[at : at + size] = (log_q.exp() - chances) / len(p)
    return float(total) / len(p), gradient.reshape(given.shape)


def _count(sums: list[float], wanted: torch.Tensor, given: torch.Tensor, rows: Ids) -> None:
    """Add up negative log likelihood and KL of some sequences."""
    following = torch.from_numpy(rows[:, 1:]).to(given.device)
    for at in range(len(given)):
        sums[0] += float(F.cross_entropy(given[at, :-1].float(), following[at], reduction="sum"))
    sums[1] += kl(wanted, given)[0] * rows.size


def embeddings(graph: FxGraph) -> set[str]:
    """Names of the tables that token ids are looked up in."""
    nodes = graph.module.graph.nodes
    found = [node.args[0] for node in nodes if node.target is torch.ops.aten.embedding.default]
    return {str(node.target) for node in found if isinstance(node, torch.fx.Node)}


def _parameters(backbone: Backbone) -> int:
    return sum(parameter.numel() for parameter in backbone.graph.module.parameters())


def _parts(ids: Ids, rows: int) -> Iterator[Ids]:
    yield from (ids[at : at + rows] for at in range(0, len(ids), rows))
