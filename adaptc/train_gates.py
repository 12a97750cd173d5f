"""Fit gates anew to what skipping costs now: cheap paths have got better since, and other blocks are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import fx

from adaptc.graph import FxGraph
from adaptc.train_start import gate

Ids = npt.NDArray[np.int64]
ROWS = 4


def refitted(
    graph: FxGraph, ids: Ids, thresholds: torch.Tensor, warmup: int, seed: int, device: str, *, bfloat16: bool
) -> dict[str, torch.Tensor]:
    """Weights of all gates of a graph, fitted to the loss of skipping where other blocks are skipped as they say now.

    The loss is to second order, as at the start of training; the gradient is that of the gated graph.

    Args:
        graph: With learned gates; its output is the logits alone.
        ids: int64 [sequences, tokens].
        thresholds: float32 [tokens], what gates are compared with at each position.
        warmup: Positions at the start of each sequence that are left out.
        seed: Of the drawn text.
        device: Where the graph's weights are.
        bfloat16: Whether to compute the model in bfloat16; gates are fitted in float32, or the line search finds no
            way down and every gate says its layer's mean.
    """
    gates = [node for node in graph.module.graph.nodes if node.target is torch.ops.adaptc.skip.default]
    found: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = [([], []) for _ in gates]
    for states, losses in _costs(graph, gates, ids, thresholds, seed, device, bfloat16):
        for place, (state, loss) in enumerate(zip(states, losses, strict=True)):
            found[place][0].append(state[:, warmup:].flatten(0, 1).float())
            found[place][1].append(loss[:, warmup:].flatten().float())
    weights = {}
    for node, (states, losses) in zip(gates, found, strict=True):
        weight, bias = gate(torch.cat(states), torch.cat(losses))
        product, constant = _linear(node)
        weights[str(product.args[1].target)] = weight  # type: ignore[union-attr]
        weights[str(constant.target)] = bias.reshape(1)
    return weights


def _linear(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """x·w and b of a gate that says squeeze(x·w + b)."""
    product, bias = node.all_input_nodes[0].all_input_nodes[0].all_input_nodes
    return product, bias


def _costs(
    graph: FxGraph,
    gates: list[fx.Node],
    ids: Ids,
    thresholds: torch.Tensor,
    seed: int,
    device: str,
    bfloat16: bool,
) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """For some sequences at a time: each gate's states [rows, tokens, width] and losses [rows, tokens]."""
    places = {node: place for place, node in enumerate(gates)}
    states = {_linear(node)[0].all_input_nodes[0]: place for place, node in enumerate(gates)}
    random = torch.Generator(device).manual_seed(seed)

    class Walk(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in states:
                seen[states[n]] = value.detach()
            if n in places:
                full, cheap = (self.env[source] for source in n.all_input_nodes[2:])
                nudge = torch.zeros_like(value, requires_grad=True)
                probes[places[n]] = (nudge, (cheap - full).detach())
                value = value + nudge
            return value

    for at in range(0, len(ids), ROWS):
        part = torch.from_numpy(ids[at : at + ROWS]).to(device)
        seen: dict[int, torch.Tensor] = {}
        probes: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        positions = torch.arange(part.shape[1], device=device).expand(part.shape)
        with torch.enable_grad(), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            [logits] = Walk(graph.module).run(part, positions, thresholds.to(device).expand(part.shape))
            logits = logits.float().flatten(0, 1)
            drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=random).flatten()
            nudges = [probes[place][0] for place in range(len(gates))]
            slopes = torch.autograd.grad(F.cross_entropy(logits, drawn, reduction="sum"), nudges)
        losses = [(slope * probes[place][1]).sum(-1).square() / 2 for place, slope in enumerate(slopes)]
        yield [seen[place] for place in range(len(gates))], losses
