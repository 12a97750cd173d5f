"""The source model with the weights that a bundle holds: what its graphs must compute, whatever rounding cost.

Rounding to few bits moves logits more than a wrong mask may. So the two are told apart: each weight of the bundle is
compared with the source's, tensor by tensor, and put into the source model. From this model the bundle's graphs differ
by float32 sums alone, or they are wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptc.families.model import multimodal_of
from adaptc.ir.marks import LAYER
from adaptc.ir.weight_names import WeightView
from adaptc.verification.stored_weights import BundleWeights, Floats, Stored

if TYPE_CHECKING:
    import torch

ERRORS: Mapping[int, float] = {32: 1e-6, 16: 1e-3, 8: 0.02, 4: 0.3}
"""Largest relative error of a tensor, ‖stored - source‖ / ‖source‖, by the bits of a stored value."""

READ_AS: Mapping[str, float] = {"float32": 0.0, "float16": 1e-3, "bfloat16": 8e-3}
"""What is added to it where the spec has the source read in another type."""


@dataclass(frozen=True, slots=True)
class WeightError:
    """One tensor of a bundle beside the source's.

    Attributes:
        name: In the source model.
        bits: Bits of a stored value; 0 if the bundle does not have the tensor: the source's stays where it is then, so
            that the graphs differ wherever it counts.
        error: ‖stored - source‖ / ‖source‖.
    """

    name: str
    bits: int
    error: float


def views_of(model: Any, stored: BundleWeights) -> dict[str, WeightView]:
    """Of which of a model's weights those of a bundle are parts, where it joins matrices or has them turned.

    Args:
        model: A language model of transformers.
        stored: The bundle's weights.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    from adaptc.capture.text import capture
    from adaptc.ir.fx_graph import VIEWS

    parameters = dict(model.named_parameters(remove_duplicate=False))
    rows = {name: value.shape[0] for name, value in parameters.items() if value.ndim}
    alike = not any(isinstance(module, Conv1D) for module in model.modules())
    inside = [name for name in model.state_dict() if LAYER.match(name) and name in parameters]
    if multimodal_of(model.config) is not None or (alike and all(stored.find(name, rows) for name in inside)):
        return {}
    shapes = {name: torch.empty(value.shape, device="meta") for name, value in parameters.items()}
    views: dict[str, WeightView] = capture(model.config, shapes).module.meta.get(VIEWS, {})
    return views


def put_weights(
    model: Any, stored: BundleWeights, views: Mapping[str, WeightView] = MappingProxyType({})
) -> list[WeightError]:
    """Replace a model's weights by those of a bundle, in place; a tied head may become one of its own.

    Args:
        model: A torch module whose parameters are named as in the source.
        stored: The bundle's weights.
        views: As `views_of` gives them.

    Returns:
        How far each is from the one that was there.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    rows = {name: value.shape[0] for name, value in parameters.items() if value.ndim}
    rows |= {name: view.shape(tuple(parameters[view.source].shape))[0] for name, view in views.items()}
    whole = replace(stored, held={**stored.held, **_whole(stored, views, parameters, rows)})
    table = _embedding(model)
    return [_put(model, name, parameters, whole, rows, table) for name in list(parameters)]


def _whole(
    stored: BundleWeights,
    views: Mapping[str, WeightView],
    parameters: Mapping[str, torch.Tensor],
    rows: Mapping[str, int],
) -> dict[str, Stored]:
    """The pretrained weights that a bundle holds in parts, or turned."""
    parts: dict[str, list[tuple[WeightView, Stored | None]]] = {}
    for name, view in views.items():
        parts.setdefault(view.source, []).append((view, stored.find(name, rows)))
    return {
        source: Stored(tuple(parameters[source].shape), min(part.bits for _, part in found), partial(_joined, found))
        for source, each in parts.items()
        if len(found := [(view, part) for view, part in each if part is not None]) == len(each)
    }


def _joined(parts: Sequence[tuple[WeightView, Stored]]) -> Floats:
    """A pretrained weight from its parts."""
    height = sum(stored.shape[0] for _, stored in parts)
    whole = np.zeros((height, *parts[0][1].shape[1:]), np.float32)
    for view, stored in parts:
        places = np.concatenate([np.arange(*run) for run in view.rows or ((0, height),)])
        whole[places] = stored.read()
    return whole.T if parts[0][0].turned and whole.ndim == 2 else whole


_NAMED = 3  # tensors that a message names; the others are counted


def weight_faults(errors: Sequence[WeightError], read_as: str) -> list[str]:
    """Tensors that rounding does not explain, in words.

    Args:
        errors: As `put_weights` returns them.
        read_as: The dtype that the spec has the source read in.
    """
    faults = []
    for each in errors:
        most = ERRORS.get(each.bits, 0.0) + READ_AS[read_as]
        if each.bits and not each.error <= most:
            faults.append(f"{each.name} is off by {each.error:.2g} of its size, {each.bits} bits explain {most:.2g}")
    rest = len(faults) - _NAMED
    return faults if rest <= 0 else [*faults[:_NAMED], f"{rest} more tensors are off"]


def _embedding(model: Any) -> str:
    """Name of the token embedding's weight; "" for a model without one."""
    table = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    return next((f"{name}.weight" for name, module in model.named_modules() if module is table), "")


def _put(
    model: Any,
    name: str,
    parameters: Mapping[str, torch.Tensor],
    stored: BundleWeights,
    rows: Mapping[str, int],
    table: str,
) -> WeightError:
    import torch

    old = parameters[name]
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    looked_up = isinstance(module, torch.nn.Embedding)
    found: Stored | None = stored.find(name, rows, looked_up=looked_up)
    if found is None and name != table and isinstance(module, torch.nn.Linear) and old.shape == parameters[table].shape:
        found = stored.find(table, rows)  # a head that the bundle takes from the embedding
    values, error = weight_error(name, old, found)
    if values is not None:
        # A new parameter, as the old one may be two modules', of which only one is stored in codes.
        module.register_parameter(leaf, torch.nn.Parameter(values, requires_grad=False))
    return error


def weight_error(name: str, old: torch.Tensor, found: Stored | None) -> tuple[torch.Tensor | None, WeightError]:
    """A stored weight as a tensor, and how far it is from the source's; no tensor where it has none of its shape."""
    import torch

    if found is None:
        return None, WeightError(name, 0, 1.0)
    values = torch.from_numpy(np.array(found.read()))
    if values.shape != old.shape:
        return None, WeightError(name, found.bits, float("inf"))
    size = float(torch.linalg.vector_norm(old.detach().float()))
    error = float(torch.linalg.vector_norm(values - old.detach().float()))
    return values, WeightError(name, found.bits, error / size if size else error)
