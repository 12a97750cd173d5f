"""Put a pretrained model's weights into an exported graph."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from adaptc.errors import LoadError
from adaptc.ir.fx_graph import assign


def tied(model: torch.nn.Module) -> dict[str, str]:
    """Return which parameters are one: tied name -> first name."""
    first: dict[int, str] = {}
    ties = {name: first.setdefault(id(tensor), name) for name, tensor in model.named_parameters(remove_duplicate=False)}
    return {name: to for name, to in ties.items() if name != to}


def attach(module: fx.GraphModule, weights: Mapping[str, torch.Tensor], ties: Mapping[str, str]) -> None:
    """Put the real weights where the exported ones stood; computed buffers (RoPE frequencies) are kept.

    A tied weight goes by one name only, so that it is stored and quantized once.

    Args:
        module: The graph's module; its parameters are replaced in place.
        weights: Real weights by parameter name; they are shared where they are float32.
        ties: As `tied` returns them.

    Raises:
        LoadError: a weight is missing, or of another shape.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for node in module.graph.nodes:
        if node.op != "get_attr" or node.target not in parameters:
            continue
        declared, node.target = parameters[node.target], ties.get(node.target, node.target)
        if node.target not in weights:
            raise LoadError(f"{node.target}: not among the model's {len(weights)} weights; the file may be incomplete")
        real = weights[node.target]
        if real.shape != declared.shape:
            raise LoadError(
                f"{node.target}: shape {list(real.shape)}; the configuration asks for {list(declared.shape)}"
            )
        assign(module, node.target, torch.nn.Parameter(real.to(declared.dtype), requires_grad=False))
