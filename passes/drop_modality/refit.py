"""A last layer of its own for a subset of modalities, fitted on labelled data."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from adaptc.errors import PassError
from adaptc.ir.fx_graph import FxGraph, assign, attribute
from adaptc.passes.drop_modality.graph import Cut, encoder, feature_names

LABELS = "labels"
ROWS = 64
"""Rows run at once."""

DECAY = 1e-3
"""Weight of the squared distance from the layer's own weights, which a subset's should stay near."""


def read_data(
    path: Path, modalities: Mapping[str, Sequence[str]], *, labelled: bool
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Read inputs and labels.

    Returns:
        Inputs by name, [rows, ...]; labels int64[rows], empty unless `labelled`.

    Raises:
        PassError: the file cannot be read, or lacks an input or the labels.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            tensors = {name: torch.from_numpy(file[name]) for name in file.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise PassError(f"data: {path.name} cannot be read: {str(error)[:120]}; an .npz file is right") from error
    names = [each for inputs in modalities.values() for each in inputs]
    for name in (*names, *([LABELS] if labelled else [])):
        if name not in tensors:
            raise PassError(f"data: {path.name} has no {name!r}; it has: {', '.join(sorted(tensors))}")
    rows = {len(tensors[name]) for name in names}
    if len(rows) != 1 or 0 in rows:
        raise PassError(f"data: {path.name}: inputs of {sorted(rows)} rows; one number of rows, from 1, is right")
    labels = tensors[LABELS].long() if labelled else torch.empty(0, dtype=torch.int64)
    if labelled and (labels.ndim != 1 or len(labels) not in rows):
        raise PassError(f"data: {path.name}: labels are {list(labels.shape)}; [{rows.pop()}] is right")
    return {name: tensors[name] for name in names}, labels


def features_of(cut: Cut, arrays: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every modality's features over the data, by name."""
    found: dict[str, torch.Tensor] = {}
    for name, nodes in cut.inputs.items():
        inputs = [arrays[str(node.target)] for node in nodes]
        part = encoder(cut, name)
        results = _run(part.loaded().module, inputs) if part is not None else inputs
        found |= dict(zip(feature_names(cut, name), results, strict=True))
    return found


def _run(module: fx.GraphModule, inputs: list[Any]) -> list[torch.Tensor]:
    try:
        with torch.no_grad():
            parts = [module(*rows) for rows in zip(*(t.split(ROWS) for t in inputs), strict=True)]
    except (RuntimeError, ValueError) as error:
        raise PassError(f"data: the model cannot read it: {str(error).strip().splitlines()[0][:160]}") from error
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def refitted(graph: FxGraph, features: Mapping[str, torch.Tensor], labels: torch.Tensor, name: str) -> FxGraph:
    """The graph with its last linear layer fitted to the labels.

    Args:
        graph: Graph of a subset; its one output is logits [batch, classes].
        features: What it reads, over the data.
        labels: int64[rows].
        name: The new weights are `NAME.weight` and `NAME.bias`.

    Raises:
        PassError: its output is not a linear layer's, or a label is not one of its classes.
    """
    fork = graph.fork()
    nodes = fork.module.graph
    [result] = nodes.output_node().all_input_nodes
    if result.target is not torch.ops.aten.linear.default:
        raise PassError("stand_in: refit needs logits from a linear layer; mean or learned can do without")
    arguments: Any = result.args
    hidden, weight, *bias = arguments
    classes, width = weight.meta["val"].shape
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise PassError(f"data: labels from {int(labels.min())} to {int(labels.max())}; 0 to {classes - 1} are right")
    before = fork.fork()
    before.module.graph.output_node().args = ((_same(before, hidden),),)
    before.module.recompile()
    [states] = _run(before.loaded().module, [features[each] for each in fork.inputs])
    start = [_tensor(fork, each) for each in (weight, *bias)]
    fitted = _logistic(states, labels, start if bias else [*start, torch.zeros(classes)])
    with nodes.inserting_before(result):
        new = []
        for leaf, value in zip(("weight", "bias"), fitted, strict=True):
            assign(fork.module, f"{name}.{leaf}", value)
            new.append(nodes.get_attr(f"{name}.{leaf}"))
            new[-1].meta = {"val": torch.empty_like(value, device="meta"), "path": ""}
    result.args = (hidden, *new)
    nodes.eliminate_dead_code()
    fork.module.recompile()
    assert width == fitted[0].shape[1]
    return fork


def _same(graph: FxGraph, node: Any) -> fx.Node:
    found: fx.Node = next(each for each in graph.module.graph.nodes if each.name == node.name)
    return found


def _tensor(graph: FxGraph, node: fx.Node) -> torch.Tensor:
    value: torch.Tensor = attribute(graph.module, str(node.target))
    return value.detach().float()


def _logistic(states: torch.Tensor, labels: torch.Tensor, start: list[torch.Tensor]) -> list[torch.Tensor]:
    """Weights of the least cross-entropy, held near `start`."""
    weights = [each.clone().requires_grad_() for each in start]
    optimizer: Any = torch.optim.LBFGS(weights, max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total: Any = torch.nn.functional.cross_entropy(states @ weights[0].T + weights[1], labels)
        total = total + DECAY * sum(((w - s) ** 2).sum() for w, s in zip(weights, start, strict=True))
        total.backward()
        return total  # type: ignore[no-any-return]

    with torch.enable_grad():
        optimizer.step(loss)
    return [each.detach() for each in weights]
