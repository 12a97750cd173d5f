"""States of a mixture of experts stay [batch, tokens, width], as everything around it has them.

transformers lays the tokens of all rows one after another before a router sees them, and apart again after the experts.
What lies between works on each token by itself, so both are left out: passes that take some rows of a step, as
`branch` does, find rows where they look for them.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from adaptc.errors import LoadError
from adaptc.ir.marks import path_of
from adaptc.ir.operators import experts  # noqa: F401  (declares adaptc::experts)

aten = torch.ops.aten

_EXPERTS = torch.ops.adaptc.experts.default
_RESHAPES = (aten.view.default, aten.reshape.default)
_EACH_TOKEN = frozenset(
    {
        _EXPERTS,
        operator.getitem,
        aten.linear.default,
        aten.add.Tensor,
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.silu.default,
        aten.gelu.default,
        aten.relu.default,
        aten.sigmoid.default,
        aten.clone.default,
        aten.to.dtype,
        aten.type_as.default,
        aten.contiguous.default,
    }
)
"""Operators that treat each token by itself, whatever axes stand before the last."""

_ALONG = {aten.softmax.int: 1, aten.topk.default: 2, aten.sum.dim_IntList: 1}
"""Operators along one axis, and the place of that axis among their arguments."""


def keep_rows(module: fx.GraphModule) -> None:
    """Leave out that tokens are laid in one row for experts, in place; a graph without experts stays as it is.

    Raises:
        LoadError: what lies around the experts mixes tokens.
    """
    graph = module.graph
    block = next((node for node in graph.nodes if node.target is _EXPERTS), None)
    if block is not None and block.args[0].meta["val"].ndim == 2:
        _keep(graph, block)
        graph.eliminate_dead_code()
        module.recompile()


def _keep(graph: fx.Graph, block: fx.Node) -> None:
    """Give every value that has the tokens of all rows in one axis, as this block's states do, the two axes."""
    flat, count = block.args[0], block.meta["val"].shape[0]
    if not isinstance(flat, fx.Node) or flat.target not in _RESHAPES:
        raise LoadError(f"{path_of(block)}: its experts read no tokens in one row; adaptc does not follow this block")
    lead = flat.all_input_nodes[0].meta["val"].shape[:-1]
    wide: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node.target in _RESHAPES and (_is_flat(node, count) or node.args[0] in wide):
            node.replace_all_uses_with(node.all_input_nodes[0])
        elif _is_flat(node, count) or wide.intersection(node.all_input_nodes):
            _divide_apart(node)
            _check(node)
            if _is_flat(node, count):
                node.meta["val"] = _widened(node.meta["val"], lead)
                wide.add(node)


def _is_flat(node: fx.Node, count: Any) -> bool:
    """Whether a node gives something whose first axis is all tokens."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (tuple, list)) and value else value
    shape: tuple[Any, ...] = tuple(getattr(first, "shape", ()))
    return len(shape) > 0 and str(shape[0]) == str(count)


def _divide_apart(node: fx.Node) -> None:
    """Divide into a value of its own: a gradient cannot go through routing weights that are overwritten."""
    if node.target is aten.div_.Tensor:
        node.target = aten.div.Tensor
        before = node.all_input_nodes[0]
        before.replace_all_uses_with(node, delete_user_cb=lambda user: user > node)


def _check(node: fx.Node) -> None:
    """Refuse an operator that does not treat each token by itself."""
    place = next((place for target, place in _ALONG.items() if target is node.target), None)
    axis = -1 if place is None or len(node.args) <= place else node.args[place]
    if (node.target not in _EACH_TOKEN and place is None) or axis not in (-1, [-1]):
        raise LoadError(f"{path_of(node)}: {node.target} around experts; adaptc follows what treats tokens one by one")


def _widened(value: Any, lead: tuple[Any, ...]) -> Any:
    """Empty values of the shapes that they have once the first axis is two."""
    if isinstance(value, (tuple, list)):
        return type(value)(_widened(each, lead) for each in value)
    with value.fake_mode:
        return torch.empty((*lead, *value.shape[1:]), dtype=value.dtype, device=value.device)
