"""States between the layers of captured decoders, for whole sequences of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from adaptc.ir.fx_graph import FxGraph
from adaptc.passes.stitch.seams import Seam
from adaptc.passes.stitch.slices import LayeredDecoder, states_graph
from adaptc.runtime.bundle.names import HIDDEN, INPUT_IDS, POSITION_IDS, THRESHOLD

States = dict[tuple[str, int], torch.Tensor]
"""Float [sequences, tokens, width] by (decoder, layer that reads the state)."""


def state_graphs(decoders: Mapping[str, LayeredDecoder], seams: Iterable[Seam]) -> dict[str, FxGraph]:
    """Return, for each decoder with a seam, a graph that gives its states there, named by layer."""
    cuts: dict[str, set[int]] = {}
    for seam in seams:
        for decoder, layer in (seam.source, seam.target):
            cuts.setdefault(decoder, set()).add(layer)
    return {
        name: states_graph(decoders[name], {str(layer): layer for layer in sorted(layers)}, logits=False)
        for name, layers in cuts.items()
    }


def run_states(graphs: Mapping[str, FxGraph], ids: torch.Tensor) -> States:
    """Return the states of every decoder for some sequences; every block runs.

    Args:
        graphs: As `state_graphs` gives them.
        ids: int64 [sequences, tokens].
    """
    states: States = {}
    for name, graph in graphs.items():
        with torch.no_grad():
            results = graph.module(*feeds(graph, ids))
        layers = [int(each) for each in graph.module.meta["outputs"]]
        states |= {(name, layer): state for layer, state in zip(layers, results, strict=True)}
    return states


def feeds(graph: FxGraph, ids: torch.Tensor, hidden: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Return the inputs of a graph for whole sequences, in the graph's order; skip gates let every block run.

    Args:
        graph: At FX level.
        ids: int64 [sequences, tokens].
        hidden: The trunk's states, float32 [sequences, tokens, width]; for tails.
    """
    values = {
        INPUT_IDS: ids,
        HIDDEN: hidden,
        POSITION_IDS: torch.arange(ids.shape[1], device=ids.device).expand(ids.shape),
        THRESHOLD: torch.full(ids.shape, float("-inf"), device=ids.device),
    }
    return [value for name in graph.inputs if (value := values[name]) is not None]
