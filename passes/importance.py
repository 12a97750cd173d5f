"""What a feed-forward block is worth: measured on calibration text, for choosing which ones may be skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import fx

from adaptc.graph import FxGraph
from adaptc.passes.gating import THRESHOLD, ffn_blocks, residual
from adaptc.placing import no_images
from adaptc.skip import RUN

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
        seed: Of the drawn text.
    """
    return fisher(graph, ids, {block.result: None for block in ffn_blocks(graph)}, seed)


def fisher(graph: FxGraph, ids: Ids, changes: Mapping[fx.Node, fx.Node | None], seed: int = 0) -> list[float]:
    """KL(dense || changed) for each of some changes by itself, to second order; nats a token, see `ffn_importance`.

    Args:
        graph: A captured decoder.
        ids: int64 [sequences, tokens].
        changes: A node, and the earlier node whose value takes its place; None for zero.
        seed: Of the drawn text.
    """
    places = {node: place for place, node in enumerate(changes)}
    wanted = {*changes, *(node for node in changes.values() if node is not None)}
    random = torch.Generator().manual_seed(seed)
    total = np.zeros(len(changes))
    for part in _parts(ids):
        probes: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        seen: dict[fx.Node, torch.Tensor] = {}

        def probe(node: fx.Node, value: torch.Tensor, probes: Any = probes, seen: Any = seen) -> torch.Tensor:
            if node in places:
                instead = changes[node]
                lost = value.detach() if instead is None else value.detach() - seen[instead]
                nudge = torch.zeros_like(value, requires_grad=True)
                probes[places[node]] = (nudge, lost)
                value = value + nudge
            seen[node] = value.detach()
            return value

        with torch.enable_grad():
            logits = _walk(graph, part, wanted, probe).float()
            drawn = torch.multinomial(logits.detach().softmax(-1).flatten(0, 1), 1, generator=random).flatten()
            torch.autograd.backward(F.cross_entropy(logits.flatten(0, 1), drawn, reduction="sum"))
        for place, (nudge, value) in probes.items():
            assert nudge.grad is not None
            total[place] += float((nudge.grad * value).sum(-1).square().sum()) / 2
    return [float(each) for each in total / ids.size]


def ffn_cosines(graph: FxGraph, ids: Ids) -> list[float]:
    """Mean cosine of the state before and after each block, its residual sum included; by layer.

    Reference: FFN-SkipLLM, arXiv:2404.03865, section 3.
    """
    pairs = [residual(graph, block) for block in ffn_blocks(graph)]
    wanted = {node for pair in pairs for node in pair}
    total = np.zeros(len(pairs))
    for seen in states(graph, ids, wanted):
        total += [float(F.cosine_similarity(seen[a].float(), seen[b].float(), dim=-1).sum()) for b, a in pairs]
    return [float(each) for each in total / ids.size]


def states(graph: FxGraph, ids: Ids, wanted: set[fx.Node]) -> Iterator[dict[fx.Node, torch.Tensor]]:
    """The values of some nodes, for some sequences at a time."""
    for part in _parts(ids):
        seen: dict[fx.Node, torch.Tensor] = {}
        with torch.no_grad():
            _walk(graph, part, wanted, lambda node, value, seen=seen: seen.setdefault(node, value))  # type: ignore[misc]
        yield seen


def decisions(graph: FxGraph, ids: Ids, threshold: float, warmup: int) -> npt.NDArray[np.bool_]:
    """Which blocks run: bool [gates, tokens after the warm-up of each sequence].

    Args:
        graph: With gates.
        ids: int64 [sequences, tokens].
        threshold: What gates are compared with after the warm-up.
        warmup: Positions at the start of a sequence where every block runs.
    """
    gates = [node for node in graph.module.graph.nodes if node.target is torch.ops.adaptc.skip.default]
    places = {gate: place for place, gate in enumerate(gates)}
    found = []
    for part in _parts(ids):
        ran: list[Any] = [None] * len(gates)

        def note(node: fx.Node, value: torch.Tensor, ran: list[Any] = ran) -> torch.Tensor:
            ran[places[node]] = value
            return value

        with torch.no_grad():
            _walk(graph, part, set(gates), note, levels(part.shape, threshold, warmup))
        found.append(np.stack(ran)[:, :, warmup:].reshape(len(gates), -1))
    return np.concatenate(found, 1)


def levels(shape: tuple[int, ...], threshold: float, warmup: int) -> torch.Tensor:
    """Thresholds of whole sequences, float32 [sequences, tokens]: -inf in the warm-up."""
    filled = torch.full(shape, threshold)
    filled[:, :warmup] = RUN
    return filled


def _parts(ids: Ids) -> Iterator[Ids]:
    yield from (ids[at : at + ROWS] for at in range(0, len(ids), ROWS))


def _walk(graph: FxGraph, ids: Ids, wanted: set[fx.Node], seen: Seen, threshold: torch.Tensor | None = None) -> Any:
    """Run a graph on token ids; `seen` sees the wanted nodes' values and may change them. Gives the logits.

    Of a gate it sees whether the block runs, bool [batch, tokens].
    """

    class Walk(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n not in wanted:
                return value
            if n.target is torch.ops.adaptc.skip.default:
                logit, level = (self.env[source] for source in n.all_input_nodes[:2])
                seen(n, (logit >= level).expand(level.shape))
                return value
            return seen(n, value)

    rows, tokens = ids.shape
    feeds = {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.arange(tokens).expand(rows, tokens),
        THRESHOLD: threshold,
        **no_images(),
    }
    [logits] = Walk(graph.module).run(*(feeds[name] for name in graph.inputs))
    return logits
