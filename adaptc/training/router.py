"""Train a router: from what each route really loses on many prompts to a small net that predicts it.

The label of a prompt is not "which route is best" but by how much each is worse than the dearest, in nats a token of
what follows the prompt. A prompt on which two routes are nearly alike then hardly matters, as it should.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)

from adaptc.errors import PassError
from adaptc.ir.stored.router_file import RouterMetadata, save_router
from adaptc.runtime.progress import SILENT, Progress
from adaptc.training.loop import Optimization, StepLoss, Training

Array = npt.NDArray[np.float32]
HIDDEN, STEPS, RATE, WEIGHT_DECAY = 32, 600, 2e-3, 0.3
PATIENCE = 60
"""Steps without a better loss on the stopping prompts, after which training ends."""

LEAST = 32
"""Smallest number of prompts that a router can be trained and calibrated on."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """Prompts, and what each route loses on them.

    Attributes:
        features: Features that the router reads: float32 [prompts, 2 · width].
        lost: Loss of each route against the dearest on what follows, nats a token: float32 [prompts, routes].
    """

    features: Array
    lost: Array

    def __getitem__(self, rows: Any) -> Prompts:
        return Prompts(self.features[rows], self.lost[rows])


class RouterObjective:
    """A router's net, towards the standardized losses of training prompts; the weights that stop best are kept."""

    def __init__(self, prompts: Prompts, seed: int = 0) -> None:
        """Standardize the prompts; a fifth of them says when to stop.

        Args:
            prompts: To train on.
            seed: Seed of everything that is drawn.

        Raises:
            PassError: too few prompts.
        """
        if len(prompts.lost) < LEAST:
            raise PassError(f"{len(prompts.lost)} prompts; at least {LEAST} are needed, and some hundred are right")
        self._random = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(prompts.lost), generator=self._random).numpy()
        stop, train = prompts[order[: len(order) // 5]], prompts[order[len(order) // 5 :]]
        self._mean, self._scale = train.features.mean(0), train.features.std(0) + 1e-3
        self._middle, self._spread = train.lost.mean(0), train.lost.std(0) + 1e-6
        self._train, self._stop = self._standardized(train), self._standardized(stop)
        self._weights: dict[str, torch.nn.Parameter] = {}
        self._best, self._kept, self._since = float("inf"), dict[str, torch.Tensor](), 0

    def start(self, progress: Progress = SILENT) -> None:
        """Draw the weights."""
        inputs, outputs = self._train[0].shape[1], self._train[1].shape[1]
        w1 = torch.randn(HIDDEN, inputs, generator=self._random) * 0.3 / inputs**0.5
        w2 = torch.randn(outputs, HIDDEN, generator=self._random) * 0.3 / HIDDEN**0.5
        drawn = {"w1": w1, "b1": torch.zeros(HIDDEN), "w2": w2, "b2": torch.zeros(outputs)}
        self.restore(drawn, {})

    def weights(self) -> Mapping[str, torch.nn.Parameter]:
        """Return w1, b1, w2 and b2, for standardized features and losses."""
        return self._weights

    def begin_step(self, step: int) -> None:
        """Do nothing: gradients train everything."""

    def backward(self, step: int, random: np.random.Generator) -> StepLoss:
        """Add the gradients of all training prompts."""
        x, y = self._train
        # Noise on what is read: there are more features than prompts.
        loss = F.smooth_l1_loss(self._net(x + 0.3 * torch.randn(x.shape, generator=self._random)), y)
        torch.autograd.backward(loss)
        return StepLoss(float(loss.detach()))

    def clip_groups(self) -> tuple[()]:
        """Return no group: gradients are not clipped."""
        return ()

    def finished(self) -> bool:
        """Keep the weights if they are the best so far; return whether none were for `PATIENCE` steps."""
        with torch.no_grad():
            loss = float(F.smooth_l1_loss(self._net(self._stop[0]), self._stop[1]))
        self._since += 1
        if loss < self._best:
            self._best, self._since = loss, 0
            self._kept = {name: weight.detach().clone() for name, weight in self._weights.items()}
        return self._since > PATIENCE

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for a checkpoint to fit."""
        return {"prompts": len(self._train[0]), "features": self._train[0].shape[1], "routes": self._train[1].shape[1]}

    def buffers(self) -> Mapping[str, torch.Tensor]:
        """Return nothing: a router trains in seconds and begins anew."""
        return {}

    def restore(self, weights: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]) -> None:
        """Take these weights."""
        self._weights = {name: torch.nn.Parameter(weight.clone()) for name, weight in weights.items()}
        self._kept = {name: weight.detach().clone() for name, weight in weights.items()}

    def best(self) -> dict[str, Array]:
        """Return the best weights, float32: w1 [hidden, 2 · width], b1, w2 [routes, hidden], b2.

        Both standardizations are folded into them, so that the router at run time knows nothing of them.
        """
        w1, b1, w2, b2 = (self._kept[name].numpy() for name in ("w1", "b1", "w2", "b2"))
        inner = w1 / self._scale
        return {
            "w1": inner.astype(np.float32),
            "b1": (b1 - inner @ self._mean).astype(np.float32),
            "w2": (w2 * self._spread[:, None]).astype(np.float32),
            "b2": (b2 * self._spread + self._middle).astype(np.float32),
        }

    def _standardized(self, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
        features = (prompts.features - self._mean) / self._scale
        return torch.from_numpy(features), torch.from_numpy((prompts.lost - self._middle) / self._spread)

    def _net(self, x: torch.Tensor) -> torch.Tensor:
        w1, b1, w2, b2 = (self._weights[name] for name in ("w1", "b1", "w2", "b2"))
        return torch.tanh(x @ w1.T + b1) @ w2.T + b2


def fitted(prompts: Prompts, seed: int = 0) -> dict[str, Array]:
    """Train a router; see `RouterObjective.best` for what is returned.

    Raises:
        PassError: too few prompts.
    """
    objective = RouterObjective(prompts, seed)
    objective.start()
    Training(objective, Optimization(STEPS, seed, lambda _: RATE, (0.9, 0.999), WEIGHT_DECAY)).run()
    return objective.best()


def predicted(weights: Mapping[str, Array], x: Array) -> Array:
    """Return what a router predicts: float32 [..., 2 · width] -> [..., routes]."""
    losses: Array = np.tanh(x @ weights["w1"].T + weights["b1"]) @ weights["w2"].T + weights["b2"]
    return losses


def recovered(losses: Array, lost: Array, cheap: int) -> tuple[Array, float]:
    """Return how much of the gap between cheapest and dearest route is recovered, by the share sent to the dearest.

    Args:
        losses: Loss of each route as the router predicts it: float32 [prompts, routes].
        lost: The measured loss; of the same shape.
        cheap: The cheapest route's column.

    Returns:
        float32 [prompts + 1], 0 at no prompt and 1 at all; and its area, which is 0.5 for a router that draws lots.
    """
    order = np.argsort(-losses[:, cheap], kind="stable")
    gained = np.concatenate([[0.0], np.cumsum(lost[order, cheap])])
    curve: Array = (gained / gained[-1]).astype(np.float32)
    return curve, float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))


def write_router(
    weights: Mapping[str, Array],
    routes: tuple[str, ...],
    held_out: Prompts,
    training: Mapping[str, Any],
    path: Path,
) -> None:
    """Write a router with the held-out prompts that it is calibrated on; the old file stays until this one is whole."""
    metadata = RouterMetadata(routes, dict(training))
    save_router(metadata, weights, predicted(weights, held_out.features), held_out.lost, path)
