"""The ways to skip that a sweep holds side by side: for a share of all feed-forward blocks, a rule that skips it.

======== ======================================================================= =======================
learned  gates and cheap paths of the bundle                                     skip_ffn, policy learned
cosine   FFN-SkipLLM (arXiv:2404.03865): tau, and k if needed, give the share    skip_ffn, policy cosine
static   the least important blocks, for every token                             skip_ffn, policy static
random   a coin for each token and block, on the layers of the learned gates
random+  the same coins; what stands in is the learned cheap path
layers   the least important layers, attention and all                           (keys and values are missing)
======== ======================================================================= =======================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)

from adaptc.evaluation.sweep.oracle import Floats, Rule, constant, layers
from adaptc.evaluation.text import Ids
from adaptc.ir.fx_graph import FxGraph
from adaptc.passes.skip_ffn import gating
from adaptc.passes.skip_ffn.importance import decisions, ffn_importance, fisher, states
from adaptc.passes.skip_ffn.skip_ffn import region as cosine_layers
from adaptc.runtime.model.budget import threshold_at

Weights = Mapping[str, torch.Tensor]
Policy = Callable[[float], Rule | None]
"""Share of all blocks to skip, 0 to 1 -> a rule; None if the policy cannot skip so much."""

ROUNDS = 12
"""Halvings of the interval in which tau is looked for."""


@dataclass(frozen=True, slots=True)
class Learned:
    """Trained gates as a bundle has them.

    Attributes:
        layers: With a gate, rising.
        weights: By name, see `gating.parameters`; float32.
        thresholds: As in the bundle's manifest.
        leaders: For each gate, the layer whose gate decides.
    """

    layers: tuple[int, ...]
    weights: Weights
    thresholds: tuple[tuple[float, float], ...]
    leaders: tuple[int, ...]


def policies(dense: FxGraph, sample: Ids, warmup: int, learned: Learned | None, seed: int = 0) -> dict[str, Policy]:
    """Every policy by name.

    Args:
        dense: A captured decoder.
        sample: int64 [sequences, tokens], the text that importance and tau are measured on.
        warmup: Positions at the start of a sequence where every block runs.
        learned: The trained gates, if there are any.
        seed: Seed of the coins.
    """
    blocks = len(gating.ffn_blocks(dense))
    by_name: dict[str, Policy] = {}
    if learned is not None:
        graph = gating.learned(dense, learned.layers, learned.weights, learned.leaders)
        by_name["learned"] = partial(_learned, graph, learned.thresholds)
    importance = ffn_importance(dense, sample)
    by_name["cosine"] = _Cosine(dense, sample[: len(sample) // 2 or 1], warmup)
    by_name["static"] = partial(_static, _placed(dense, importance), blocks, seed)
    gated = learned.layers if learned is not None else tuple(range(blocks))
    by_name["random"] = partial(_random, gating.static(dense, dict.fromkeys(gated, 0.0), {}), len(gated), blocks, seed)
    if learned is not None:
        graph = gating.static(dense, dict.fromkeys(gated, 0.0), learned.weights)
        by_name["random+"] = partial(_random, graph, len(gated), blocks, seed)
    by_name["layers"] = partial(_layers, dense, np.argsort(layer_importance(dense, sample)).tolist())
    return by_name


def _learned(graph: FxGraph, thresholds: Sequence[tuple[float, float]], share: float) -> Rule | None:
    most = thresholds[-1][0]
    if share > most + 0.005:
        return None
    level = threshold_at(thresholds, max(0.0, 1 - share / most))
    return Rule(graph, constant(level), about=f"threshold {level:.3f}")


def _placed(dense: FxGraph, importance: Sequence[float]) -> FxGraph:
    """Gates that say the place of their layer in the order of importance."""
    places = {int(layer): float(place) for place, layer in enumerate(np.argsort(importance))}
    return gating.static(dense, places, {})


def _static(graph: FxGraph, blocks: int, seed: int, share: float) -> Rule:
    """Whole blocks; the last one for some of the tokens, so that the share is met."""
    whole, part = divmod(share * blocks, 1)

    def levels(window: int, tokens: int) -> Floats:
        more = np.random.default_rng((seed, window)).random(tokens) < part
        return np.asarray(whole - 0.5 + more, np.float32)

    return Rule(graph, levels, about=f"{share * blocks:.1f} blocks")


def _random(graph: FxGraph, gates: int, blocks: int, seed: int, share: float) -> Rule | None:
    chance = share * blocks / gates
    if chance > 1:
        return None

    def said(window: int, tokens: int) -> Floats:
        return np.random.default_rng((seed, window)).random((gates, tokens), np.float32)

    return Rule(graph, constant(chance), said, about=f"chance {chance:.3f}")


def _layers(dense: FxGraph, order: Sequence[int], share: float) -> Rule:
    """Whole layers only: what a layer that runs now and then would find in its cache is not defined."""
    dropped = tuple(sorted(order[: max(1, round(share * len(order)))]))
    return Rule(dense, constant(0.0), dropped=dropped, about=f"layers {', '.join(map(str, dropped))}")


def layer_importance(graph: FxGraph, ids: Ids, seed: int = 0) -> list[float]:
    """As `ffn_importance`, of whole layers: the KL of giving back what a layer got, to second order."""
    return fisher(graph, ids, {end: before for before, end in layers(graph)}, seed)


class _Cosine:
    """Finds tau, and k if 2 is not enough, for a share.

    How often a block is skipped is first worked out from the dense model's cosines; then tau is corrected by what the
    gated model does, as skipping changes the states after it.
    """

    def __init__(self, dense: FxGraph, sample: Ids, warmup: int) -> None:
        self._dense, self._sample, self._warmup = dense, sample, warmup
        self._blocks = len(gating.ffn_blocks(dense))
        pairs = [gating.residual(dense, block) for block in gating.ffn_blocks(dense)]
        cosines = [
            np.stack([F.cosine_similarity(seen[a].float(), seen[b].float(), dim=-1).numpy() for b, a in pairs])
            for seen in states(dense, sample, {node for pair in pairs for node in pair})
        ]
        self._cosines = np.concatenate([each[:, :, warmup:].reshape(len(pairs), -1) for each in cosines], 1)

    def __call__(self, share: float) -> Rule | None:
        wanted = share
        best: tuple[float, Rule] | None = None
        for _ in range(3):
            if wanted <= 0 or (choice := self._choose(wanted)) is None:
                break
            tau, k = choice
            layers_ = self._skippable(tau)
            graph = gating.cosine(self._dense, layers_, tau, k)
            ran = decisions(graph, self._sample, -0.5, self._warmup)
            real = float((~ran).sum(0).mean()) / self._blocks
            rule = Rule(graph, constant(-0.5), about=f"tau {tau:.3f}, k {k}, layers {layers_[0]}-{layers_[-1]}")
            if best is None or abs(real - share) < best[0]:
                best = abs(real - share), rule
            if abs(real - share) < 0.01:
                break
            wanted += share - real
        return best[1] if best is not None else None

    def _choose(self, share: float) -> tuple[float, int] | None:
        """The highest tau that is expected to skip the share, with the smallest k that can."""
        for k in (2, 3, 4, 6, 8):
            low, high = float(self._cosines.min()), 1.0
            if self._expected(low, k) < share:
                continue
            for _ in range(ROUNDS):
                middle = (low + high) / 2
                low, high = (middle, high) if self._expected(middle, k) >= share else (low, middle)
            return low, k
        return None

    def _skippable(self, tau: float) -> tuple[int, ...]:
        """The layers between the cold start and the cold end."""
        return cosine_layers([float(each) for each in self._cosines.mean(1)], tau)

    def _expected(self, tau: float, k: int) -> float:
        """Share skipped if skipping changed no cosine."""
        left: npt.NDArray[np.int64] = np.zeros(self._cosines.shape[1], np.int64)
        skipped = 0
        for layer in self._skippable(tau):
            skips = left > 0
            skipped += int(skips.sum())
            left = np.where(skips, left - 1, np.where(self._cosines[layer] >= tau, k, 0))
        return float(skipped / self._cosines.shape[1] / self._blocks)
