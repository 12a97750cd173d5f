"""Fit gates anew to what skipping costs now: cheap paths have got better since, and other blocks are skipped."""

from __future__ import annotations

import torch
from torch import fx

from adaptc.ir.fx_graph import FxGraph
from adaptc.passes.skip_ffn.importance import ROWS, sensitivities
from adaptc.training.gates.start import gate
from adaptc.training.text import Ids, Mask


def refitted(
    graph: FxGraph, ids: Ids, levels: torch.Tensor, counts: Mask, seed: int, device: str, *, bfloat16: bool
) -> dict[str, torch.Tensor]:
    """Return the weights of all gates of a graph, fitted to the loss of skipping where other blocks are skipped as now.

    The loss is to second order, as at the start of training; the gradient is that of the gated graph.

    Args:
        graph: With learned gates; its output is the logits alone.
        ids: int64 [sequences, tokens].
        levels: float32 [sequences, tokens], what gates are compared with at each position.
        counts: bool [sequences, tokens], where they are fitted.
        seed: Seed of the drawn text.
        device: Device of the graph's weights.
        bfloat16: Whether to compute the model in bfloat16; gates are fitted in float32, or the line search finds no
            way down and every gate says its layer's mean.
    """
    gates = [node for node in graph.module.graph.nodes if node.target is torch.ops.adaptc.skip.default]
    wanted = {node for each in gates for node in (each, _state(each), *each.all_input_nodes[2:])}
    random = torch.Generator(device).manual_seed(seed)
    samples: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = [([], []) for _ in gates]
    for at in range(0, len(ids), ROWS):
        part = ids[at : at + ROWS]
        where = torch.from_numpy(counts[at : at + ROWS]).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            values, slopes = sensitivities(graph, part, set(gates), wanted, random, levels[at : at + ROWS])
        for node, (states, losses) in zip(gates, samples, strict=True):
            full, cheap = (values[side] for side in node.all_input_nodes[2:])
            loss = (slopes[node] * (cheap - full)).sum(-1).square() / 2
            states.append(values[_state(node)][where].float())
            losses.append(loss[where].float())
    weights = {}
    for node, (states, losses) in zip(gates, samples, strict=True):
        weight, bias = gate(torch.cat(states), torch.cat(losses))
        product, constant = _linear(node)
        weights[str(product.args[1].target)] = weight  # type: ignore[union-attr]
        weights[str(constant.target)] = bias.reshape(1)
    return weights


def _linear(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Return x·w and b of a gate whose logit is squeeze(x·w + b)."""
    product, bias = node.all_input_nodes[0].all_input_nodes[0].all_input_nodes
    return product, bias


def _state(node: fx.Node) -> fx.Node:
    """Return the state that a gate reads."""
    return _linear(node)[0].all_input_nodes[0]
