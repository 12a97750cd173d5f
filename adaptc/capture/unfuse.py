"""Joined projections of a checkpoint become one linear layer each: query, key, value; gate, up.

Models join them in many orders: one after the other, head by head, group by group. What belongs to whom is asked of the
graph itself: the operators that take a product apart only move numbers, so moving row numbers tells which rows a part
has.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx

from adaptc.ir.fx_graph import assign
from adaptc.ir.marks import path_of
from adaptc.ir.operators import (
    attention,  # noqa: F401  (declares adaptc::causal_attention)
    encoder_attention,  # noqa: F401  (declares adaptc::encoder_attention)
)
from adaptc.ir.weight_names import Runs, WeightView

aten = torch.ops.aten

_MOVES = frozenset(
    (
        aten.view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.transpose.int,
        aten.permute.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.chunk.default,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.squeeze.dim,
        aten.unsqueeze.default,
        aten.unbind.int,
        aten.contiguous.default,
        aten.clone.default,
        operator.getitem,
    )
)
"""Operators that only move numbers."""

_ATTENTION = (
    torch.ops.adaptc.causal_attention.default,
    torch.ops.adaptc.chunked_attention.default,
    torch.ops.adaptc.encoder_attention.default,
)

_ENDS = frozenset((aten.linear.default, *_ATTENTION))
"""Where the search for a part's product ends."""

_BATCH, _TOKENS = 2, 3
"""Sizes for which rows are moved."""

_ROLES = ("q_proj", "k_proj", "v_proj")


def unfuse(module: fx.GraphModule) -> dict[str, WeightView]:
    """Give each part of a joined projection a linear layer of its own, in place.

    Args:
        module: After `tidy`; its parameters are empty.

    Returns:
        What the new parameters are of the old ones.
    """
    views: dict[str, WeightView] = {}
    for linear in [node for node in module.graph.nodes if node.target is aten.linear.default]:
        moved = _moved(linear)
        parts = _attention_parts(linear, moved) or _plain_parts(linear, moved)
        rows = {name: _rows(linear, moved, node) for name, node in parts.items()}
        if len(parts) < 2 or any(each is None for each in rows.values()):
            continue
        for name, node in parts.items():
            _replace(module, linear, name, node, rows[name] or [], views)
    module.graph.eliminate_dead_code()
    module.recompile()
    return views


def _moved(linear: fx.Node) -> dict[fx.Node, None]:
    """A product, and what is only moved from it, in order."""
    found: dict[fx.Node, None] = {linear: None}
    for node in linear.graph.nodes:
        if node.target in _MOVES and node.args[0] in found:
            found[node] = None
    return found


def _attention_parts(linear: fx.Node, moved: dict[fx.Node, None]) -> dict[str, fx.Node]:
    """The heads of query, key and value, of a product that gives at least two of them."""
    for node in linear.graph.nodes:
        if node.target in _ATTENTION:
            ends = {role: _last_whole(linear, moved, arg) for role, arg in zip(_ROLES, node.args[:3], strict=True)}
            found = {role: end for role, end in ends.items() if end is not None and end is not linear}
            if len(found) > 1:
                return found
    return {}


def _last_whole(linear: fx.Node, moved: dict[fx.Node, None], end: fx.Node) -> fx.Node | None:
    """The last moved node through which all goes that `end` has of the product: RoPE cuts a head, and joins it."""
    above: set[fx.Node] = set()
    open_ = [end]
    while open_:
        node = open_.pop()
        if node not in above:
            above.add(node)
            open_ += [] if node.target in _ENDS else node.all_input_nodes
    if linear not in above:
        return None
    inside = [node for node in moved if node in above]
    return next((node for node in reversed(inside) if not _reaches(linear, end, node, above)), None)


def _reaches(start: fx.Node, end: fx.Node, without: fx.Node, among: set[fx.Node]) -> bool:
    """Whether a value goes from one node to another past a third."""
    open_, seen = [start], {start}
    while open_:
        node = open_.pop()
        if node is without:
            continue
        if node is end:
            return True
        open_ += [user for user in node.users if user in among and user not in seen]
        seen.update(node.users)
    return False


def _plain_parts(linear: fx.Node, moved: dict[fx.Node, None]) -> dict[str, fx.Node]:
    """The parts of a product that is cut along its last axis: a block's gate, which has an activation, and its up."""
    ends = [node for node in moved if any(user not in moved for user in node.users)]
    if len(ends) != 2 or linear in ends or any(node.meta["val"].ndim != 3 for node in ends):
        return {}
    first, second = ends
    if all(user.target is aten.mul.Tensor for user in first.users):
        first, second = second, first
    return {"gate_proj": first, "up_proj": second}


def _rows(linear: fx.Node, moved: dict[fx.Node, None], part: fx.Node) -> list[int] | None:
    """The rows of the product's weight that a part has; None if it is not of [batch, tokens] or of heads."""
    count = int(linear.meta["val"].shape[-1])
    values: dict[fx.Node, Any] = {
        linear: torch.arange(_BATCH * _TOKENS * count).reshape(_BATCH, _TOKENS, count),
    }
    for node in moved:
        if node is not linear:
            args = fx.node.map_arg(node.args, lambda arg: _value(arg, values))
            values[node] = node.target(*args, **node.kwargs)  # type: ignore[operator]
        if node is part:
            break
    result = values[part]
    if not isinstance(result, torch.Tensor) or result.ndim not in (3, 4):
        return None
    heads = result.transpose(1, 2) if result.ndim == 4 else result[:, :, None]
    if heads.shape[:2] != (_BATCH, _TOKENS):
        return None
    places = torch.arange(_BATCH * _TOKENS).reshape(_BATCH, _TOKENS, 1, 1)
    rows = heads - places * count
    alike = bool((rows == rows[:1, :1]).all()) and 0 <= int(rows.min()) <= int(rows.max()) < count
    return rows[0, 0].reshape(-1).tolist() if alike else None


def _value(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """What a node is for the sizes at hand; sizes are read off the ids."""
    if node not in values:
        if node.target is aten.sym_size.int:
            values[node] = (_BATCH, _TOKENS)[int(node.args[1])]  # type: ignore[arg-type]
        else:
            args = fx.node.map_arg(node.args, lambda arg: _value(arg, values))
            values[node] = node.target(*args)  # type: ignore[operator]
    return values[node]


def _replace(
    module: fx.GraphModule,
    linear: fx.Node,
    name: str,
    part: fx.Node,
    rows: list[int],
    views: dict[str, WeightView],
) -> None:
    """Let a linear layer of its own give a part."""
    owner = path_of(linear).rpartition(".")[0]
    path = f"{owner}.{name}"
    batch, tokens, _ = linear.meta["val"].shape
    with module.graph.inserting_after(linear):
        weights = []
        for leaf, old in zip(("weight", "bias"), linear.all_input_nodes[1:], strict=False):
            views[f"{path}.{leaf}"] = WeightView(str(old.target), rows=_runs(rows))
            weights.append(_parameter(module, f"{path}.{leaf}", old, len(rows)))
    heads = part.meta["val"]
    given: Any = (linear.args[0], *weights)
    with module.graph.inserting_before(part):
        new = module.graph.call_function(aten.linear.default, given)
        new.meta = {"val": heads.new_empty((batch, tokens, len(rows))), "path": path}
        result = new
        if heads.ndim == 4:
            sizes = [_size(linear.graph, axis) for axis in (0, 1)]
            shape: list[Any] = [*sizes, int(heads.shape[1]), int(heads.shape[3])]
            view = module.graph.call_function(aten.view.default, (new, shape))
            view.meta = {"val": new.meta["val"].view(batch, tokens, *shape[2:]), "path": owner}
            result = module.graph.call_function(aten.transpose.int, (view, 1, 2))
            result.meta = {"val": view.meta["val"].transpose(1, 2), "path": owner}
    part.replace_all_uses_with(result)


def _parameter(module: fx.GraphModule, name: str, like: fx.Node, rows: int) -> fx.Node:
    """A get_attr node of a new parameter with so many rows."""
    value = like.meta["val"]
    shape = (rows, *value.shape[1:])
    assign(module, name, torch.nn.Parameter(torch.empty(shape, dtype=value.dtype), requires_grad=False))
    node = module.graph.get_attr(name)
    node.meta = {"val": value.new_empty(shape), "path": like.meta["path"]}
    return node


def _size(graph: fx.Graph, axis: int) -> fx.Node:
    """The node that reads the batch or the tokens off the ids."""
    nodes: Iterator[fx.Node] = iter(graph.nodes)
    return next(node for node in nodes if node.target is aten.sym_size.int and node.args[1] == axis)


def _runs(rows: Sequence[int]) -> Runs:
    """Row numbers as runs."""
    runs: list[tuple[int, int]] = []
    for row in rows:
        if runs and runs[-1][1] == row:
            runs[-1] = runs[-1][0], row + 1
        else:
            runs.append((row, row + 1))
    return tuple(runs)
