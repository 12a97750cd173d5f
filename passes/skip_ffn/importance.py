"""What a feed-forward block is worth: measured on calibration text, for choosing which ones may be skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import fx

from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.operators.place import no_images
from adaptc.ir.operators.skip import RUN
from adaptc.passes.skip_ffn.gating import ffn_blocks, residual
from adaptc.runtime.bundle.names import INPUT_IDS, POSITION_IDS, THRESHOLD

Ids = npt.NDArray[np.int64]
Seen = Callable[[fx.Node, torch.Tensor], torch.Tensor]

ROWS = 4
"""Sequences in one step; a step keeps what a backward pass needs."""


def ffn_importance(graph: FxGraph, ids: Ids, seed: int = 0) -> list[float]:
    """How much the model's predictions suffer if a block gives zero, to second order; by layer, in nats a token.

    KL(dense || without) is about ½ (g · y)², summed over tokens: y is what a block gives and g the gradient of the
    log probability of a text drawn from the model's own predictions (the Fisher information; Martens 2020,
    arXiv:1412.1193, section 5). One backward pass gives it for all blocks at once.

    Args:
        graph: A captured decoder.
        ids: int64 [sequences, tokens].
        seed: Seed of the drawn text.
    """
    graph = graph.loaded()
    return fisher(graph, ids, {block.result: None for block in ffn_blocks(graph)}, seed)


def fisher(graph: FxGraph, ids: Ids, changes: Mapping[fx.Node, fx.Node | None], seed: int = 0) -> list[float]:
    """KL(dense || changed) for each of some changes by itself, to second order; nats a token, see `ffn_importance`.

    Args:
        graph: A captured decoder.
        ids: int64 [sequences, tokens].
        changes: A node, and the earlier node whose value takes its place; None for zero.
        seed: Seed of the drawn text.
    """
    wanted = {*changes, *(node for node in changes.values() if node is not None)}
    random = torch.Generator(_device(graph)).manual_seed(seed)
    total = np.zeros(len(changes))
    for part in _parts(ids):
        values, slopes = sensitivities(graph, part, set(changes), wanted, random)
        for place, (node, instead) in enumerate(changes.items()):
            lost = values[node] if instead is None else values[node] - values[instead]
            total[place] += float((slopes[node] * lost).sum(-1).square().sum()) / 2
    return [float(each) for each in total / ids.size]


def sensitivities(
    graph: FxGraph,
    ids: Ids,
    nodes: AbstractSet[fx.Node],
    wanted: AbstractSet[fx.Node],
    random: torch.Generator,
    threshold: torch.Tensor | None = None,
) -> tuple[dict[fx.Node, torch.Tensor], dict[fx.Node, torch.Tensor]]:
    """Values, and how the negative log likelihood of a text drawn from the model's own predictions depends on some.

    Args:
        graph: A captured decoder.
        ids: int64 [sequences, tokens], read at once.
        nodes: Nodes whose values the gradient is taken by.
        wanted: Nodes whose values are returned, those of `nodes` among them.
        random: Draws the text; on the device where the graph's weights are.
        threshold: What gates are compared with, float32 [sequences, tokens]; for a graph with gates.

    Returns:
        Values of `wanted`, and gradients of the sum over tokens by `nodes`.
    """
    values: dict[fx.Node, torch.Tensor] = {}
    nudges: dict[fx.Node, torch.Tensor] = {}

    def note(node: fx.Node, value: torch.Tensor) -> torch.Tensor:
        values[node] = value.detach()
        if node in nodes:
            nudges[node] = torch.zeros_like(value, requires_grad=True)
            value = value + nudges[node]
        return value

    with torch.enable_grad():
        logits = _walk(graph, ids, wanted, note, threshold).float().flatten(0, 1)
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=random).flatten()
        slopes = torch.autograd.grad(F.cross_entropy(logits, drawn, reduction="sum"), list(nudges.values()))
    return values, dict(zip(nudges, slopes, strict=True))


def ffn_cosines(graph: FxGraph, ids: Ids) -> list[float]:
    """Mean cosine of the state before and after each block, its residual sum included; by layer.

    Reference: FFN-SkipLLM, arXiv:2404.03865, section 3.
    """
    graph = graph.loaded()
    pairs = [residual(graph, block) for block in ffn_blocks(graph)]
    wanted = {node for pair in pairs for node in pair}
    total = np.zeros(len(pairs))
    for seen in states(graph, ids, wanted):
        total += [float(F.cosine_similarity(seen[a].float(), seen[b].float(), dim=-1).sum()) for b, a in pairs]
    return [float(each) for each in total / ids.size]


def states(graph: FxGraph, ids: Ids, wanted: set[fx.Node]) -> Iterator[dict[fx.Node, torch.Tensor]]:
    """The values of some nodes, for some sequences at a time; on the CPU, wherever the graph runs."""
    for part in _parts(ids):
        yield _values(graph, part, wanted)


def decisions(graph: FxGraph, ids: Ids, threshold: float, warmup: int) -> npt.NDArray[np.bool_]:
    """Which blocks run: bool [gates, tokens after the warm-up of each sequence].

    Args:
        graph: With gates.
        ids: int64 [sequences, tokens].
        threshold: What gates are compared with after the warm-up.
        warmup: Positions at the start of a sequence where every block runs.
    """
    gates = [node for node in graph.module.graph.nodes if node.target is torch.ops.adaptc.skip.default]
    logits = [gate.all_input_nodes[0] for gate in gates]
    found = []
    for part in _parts(ids):
        at = levels(part.shape, threshold, warmup)
        seen = _values(graph, part, set(logits), at)
        ran = np.stack([(seen[logit] >= at).expand(at.shape) for logit in logits])
        found.append(ran[:, :, warmup:].reshape(len(gates), -1))
    return np.concatenate(found, 1)


def levels(shape: tuple[int, ...], threshold: float, warmup: int) -> torch.Tensor:
    """Thresholds of whole sequences, float32 [sequences, tokens]: -inf in the warm-up."""
    filled = torch.full(shape, threshold)
    filled[:, :warmup] = RUN
    return filled


def _parts(ids: Ids) -> Iterator[Ids]:
    yield from (ids[at : at + ROWS] for at in range(0, len(ids), ROWS))


def _values(
    graph: FxGraph, ids: Ids, wanted: AbstractSet[fx.Node], threshold: torch.Tensor | None = None
) -> dict[fx.Node, torch.Tensor]:
    values: dict[fx.Node, torch.Tensor] = {}
    with torch.no_grad():
        _walk(graph, ids, wanted, values.setdefault, threshold)
    return {node: value.cpu() for node, value in values.items()}


def _walk(
    graph: FxGraph,
    ids: Ids,
    wanted: AbstractSet[fx.Node],
    seen: Seen,
    threshold: torch.Tensor | None = None,
) -> Any:
    """Run a graph on token ids; `seen` sees the wanted nodes' values and may change them. Gives the logits."""

    class Walk(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            return seen(n, value) if n in wanted else value

    rows, tokens = ids.shape
    device = _device(graph)
    feeds = {
        INPUT_IDS: torch.from_numpy(ids).to(device),
        POSITION_IDS: torch.arange(tokens, device=device).expand(rows, tokens),
        THRESHOLD: None if threshold is None else threshold.to(device),
        **no_images(),
    }
    [logits] = Walk(graph.module).run(*(feeds[name] for name in graph.inputs))
    return logits


def _device(graph: FxGraph) -> torch.device:
    """The device of a graph's weights, where its inputs must be too."""
    return next(graph.module.parameters()).device
