"""Train a router: from what each route really loses on many prompts to a small net that predicts it.

The label of a prompt is not "which route is best" but by how much each is worse than the dearest, in nats a token of
what follows the prompt. A prompt on which two routes are nearly alike then hardly matters, as it should.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)

from adaptc.errors import PassError
from adaptc.ir.graph import FxGraph
from adaptc.passes.stitch.least_squares import feeds
from adaptc.passes.stitch.routing import CARD, LOST, PREDICTED
from adaptc.runtime.bundle.replace import write_whole
from adaptc.runtime.model.router import features

Array = npt.NDArray[np.float32]
HIDDEN, STEPS, PATIENCE = 32, 600, 60
LEAST = 32
"""Prompts that a router can be trained and calibrated on."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """What is known of some prompts.

    Attributes:
        features: What the router reads: float32 [prompts, 2 · width].
        lost: What each route loses against the dearest on what follows, nats a token: float32 [prompts, routes].
    """

    features: Array
    lost: Array

    def __getitem__(self, rows: Any) -> Prompts:
        return Prompts(self.features[rows], self.lost[rows])


def observe(
    graphs: Mapping[str, FxGraph],
    costs: Mapping[str, float],
    ids: npt.NDArray[np.int64],
    stage: Callable[[str], None] = lambda _: None,
    device: str = "cpu",
) -> Prompts:
    """Run every route over every prompt.

    Args:
        graphs: A stitched program's, at FX level: `trunk` and `tail.ROUTE`.
        costs: By route.
        ids: int64 [prompts, tokens]: the first half of each is the prompt, the second what follows.
        stage: Told what is being done.
        device: "cpu" or "cuda".
    """
    half = ids.shape[1] // 2
    seen, losses = [], []
    for graph in graphs.values():
        graph.module.to(device)
    for at in range(0, len(ids), 8):
        if at % 64 == 0:
            stage(f"prompts {at} of {len(ids)}")
        rows = torch.from_numpy(ids[at : at + 8]).to(device)
        with torch.no_grad():
            [states] = graphs["trunk"].module(*feeds(graphs["trunk"], rows))
            seen += [features(each[:half].float().cpu().numpy()) for each in states]
            by_route = []
            for route in costs:
                tail = graphs[f"tail.{route}"]
                [logits] = tail.module(*feeds(tail, rows, states))
                given = logits[:, half - 1 : -1].float().transpose(1, 2)
                by_route.append(F.cross_entropy(given, rows[:, half:], reduction="none").mean(1).cpu().numpy())
            losses.append(np.stack(by_route, 1))
    lost = np.concatenate(losses)
    dearest = list(costs).index(max(costs, key=lambda route: costs[route]))
    return Prompts(np.stack(seen), (lost - lost[:, dearest : dearest + 1]).astype(np.float32))


def fitted(prompts: Prompts, seed: int = 0) -> dict[str, Array]:
    """Weights of a router, float32: w1 [hidden, 2 · width], b1, w2 [routes, hidden], b2.

    A fifth of the prompts says when to stop.

    Args:
        prompts: To train on.
        seed: Of everything drawn.

    Raises:
        PassError: too few prompts.
    """
    if len(prompts.lost) < LEAST:
        raise PassError(f"{len(prompts.lost)} prompts; at least {LEAST} are needed, and some hundred are right")
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(prompts.lost), generator=random).numpy()
    stop, train = prompts[order[: len(order) // 5]], prompts[order[len(order) // 5 :]]
    mean, scale = train.features.mean(0), train.features.std(0) + 1e-3
    middle, spread = train.lost.mean(0), train.lost.std(0) + 1e-6
    x, y, stop_x, stop_y = (
        torch.from_numpy(each)
        for each in (
            (train.features - mean) / scale,
            (train.lost - middle) / spread,
            (stop.features - mean) / scale,
            (stop.lost - middle) / spread,
        )
    )
    w1 = torch.randn(HIDDEN, x.shape[1], generator=random) * 0.3 / x.shape[1] ** 0.5
    w2 = torch.randn(y.shape[1], HIDDEN, generator=random) * 0.3 / HIDDEN**0.5
    weights = [w1, torch.zeros(HIDDEN), w2, torch.zeros(y.shape[1])]
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.3)
    best, kept, since = float("inf"), [weight.detach().clone() for weight in weights], 0
    for _ in range(STEPS):
        # Noise on what is read: there are more features than prompts.
        loss = F.smooth_l1_loss(_net(weights, x + 0.3 * torch.randn(x.shape, generator=random)), y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        with torch.no_grad():
            now = float(F.smooth_l1_loss(_net(weights, stop_x), stop_y))
        since += 1
        if now < best:
            best, kept, since = now, [weight.detach().clone() for weight in weights], 0
        if since > PATIENCE:
            break
    w1_, b1, w2_, b2 = (weight.numpy() for weight in kept)
    # Both standardizations go into the matrices, so that the router at run time knows nothing of them.
    inner = w1_ / scale
    return {
        "w1": inner.astype(np.float32),
        "b1": (b1 - inner @ mean).astype(np.float32),
        "w2": (w2_ * spread[:, None]).astype(np.float32),
        "b2": (b2 * spread + middle).astype(np.float32),
    }


def _net(weights: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    w1, b1, w2, b2 = weights
    return torch.tanh(x @ w1.T + b1) @ w2.T + b2


def predicted(weights: Mapping[str, Array], x: Array) -> Array:
    """What a router says: float32 [..., 2 · width] -> [..., routes]."""
    found: Array = np.tanh(x @ weights["w1"].T + weights["b1"]) @ weights["w2"].T + weights["b2"]
    return found


def recovered(said: Array, lost: Array, cheap: int) -> tuple[Array, float]:
    """How much of the gap between the cheapest and the dearest route is recovered, by the share sent to the dearest.

    Args:
        said: What the router predicts each route loses: float32 [prompts, routes].
        lost: What it loses; of the same shape.
        cheap: The cheapest route's column.

    Returns:
        float32 [prompts + 1], 0 at no prompt and 1 at all; and its area, which is 0.5 for a router that draws lots.
    """
    order = np.argsort(-said[:, cheap], kind="stable")
    gained = np.concatenate([[0.0], np.cumsum(lost[order, cheap])])
    curve: Array = (gained / gained[-1]).astype(np.float32)
    return curve, float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))


def save_router(
    weights: Mapping[str, Array],
    routes: tuple[str, ...],
    held_out: Prompts,
    training: Mapping[str, Any],
    path: Path,
) -> None:
    """Write a router with the held-out prompts that it is calibrated on; the old file stays until this one is whole."""
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()}
    tensors[PREDICTED] = np.ascontiguousarray(predicted(weights, held_out.features), np.float32)
    tensors[LOST] = np.ascontiguousarray(held_out.lost, np.float32)
    card = json.dumps({"routes": list(routes), "training": dict(training)})
    write_whole(path, save(tensors, metadata={CARD: card}))
