"""Put a pretrained model's weights into an exported graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import torch
from torch import fx

from adaptc.errors import LoadError
from adaptc.ir.fx_graph import assign
from adaptc.ir.marks import LAYER
from adaptc.ir.unread.tensors import UnreadTensor
from adaptc.ir.weight_names import UnreadTensors, ViewedTensors, WeightView


def tied(model: torch.nn.Module) -> dict[str, str]:
    """Return which parameters are one: tied name -> first name."""
    first: dict[int, str] = {}
    ties = {name: first.setdefault(id(tensor), name) for name, tensor in model.named_parameters(remove_duplicate=False)}
    return {name: to for name, to in ties.items() if name != to}


def attach(
    module: fx.GraphModule,
    weights: Mapping[str, torch.Tensor],
    ties: Mapping[str, str],
    views: Mapping[str, WeightView] = MappingProxyType({}),
) -> dict[str, WeightView]:
    """Put the real weights where the exported ones stood; computed buffers (RoPE frequencies) are kept.

    A tied weight goes by one name only, so that it is stored and quantized once. Weights in files are not read here.

    Args:
        module: The graph's module; its parameters are replaced in place.
        weights: Real weights by parameter name; tensors are shared where they are float32.
        ties: As `tied` returns them.
        views: Which of the exported parameters are parts of the real weights, or turned ones.

    Returns:
        The views of the graph's weights, of all layers.

    Raises:
        LoadError: a weight is missing, or of another shape.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    by_place = {_place(name): view for name, view in views.items()}
    found: dict[str, WeightView] = {}
    for node in module.graph.nodes:
        if node.op != "get_attr" or node.target not in parameters:
            continue
        declared, node.target = parameters[node.target], ties.get(node.target, node.target)
        view = by_place.get(_place(node.target))
        if view is not None:
            view = found[node.target] = replace(view, source=_moved(view.source, node.target))
        source = node.target if view is None else view.source
        if source not in weights:
            raise LoadError(f"{source}: not among the model's {len(weights)} weights; the file may be incomplete")
        real = _weight(weights, node.target, view, declared.dtype)
        if real.shape != declared.shape:
            raise LoadError(
                f"{node.target}: shape {list(real.shape)}; the configuration asks for {list(declared.shape)}"
            )
        assign(module, node.target, real)
    return found


def _weight(
    weights: Mapping[str, torch.Tensor], name: str, view: WeightView | None, dtype: torch.dtype
) -> torch.Tensor:
    """A weight as a module's parameter."""
    if isinstance(weights, UnreadTensors):
        viewed = ViewedTensors(weights, {} if view is None else {name: view})
        known = viewed.identity(name)
        return UnreadTensor.of(
            viewed.shape(name), dtype, partial(_read, viewed, name, dtype), known and f"{known} as {dtype}"
        )
    real = weights[name] if view is None else view.of(weights[view.source])
    return torch.nn.Parameter(real.to(dtype), requires_grad=False)


def _read(weights: UnreadTensors, name: str, dtype: torch.dtype) -> torch.Tensor:
    return weights[name].to(dtype)


def _place(name: str) -> str:
    """A parameter's name without the number of its layer."""
    return LAYER.sub(r"\g<stem>", name)


def _moved(name: str, to: str) -> str:
    """The name of the parameter at the same place in another one's layer."""
    layer = LAYER.match(to)
    return name if layer is None else LAYER.sub(layer.group(), name)
