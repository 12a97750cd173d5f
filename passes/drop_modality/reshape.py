"""Shapes after some tokens are gone: what a captured graph spells as a number is made right again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from adaptc.errors import PassError
from adaptc.ir.fx_graph import FxGraph
from adaptc.passes.drop_modality.graph import SIZE

_RESHAPES = {
    torch.ops.aten.view.default,
    torch.ops.aten.reshape.default,
    torch.ops.aten._unsafe_view.default,
}

_SIZED = _RESHAPES | {torch.ops.aten.expand.default, torch.ops.aten.unflatten.int}
"""Operators whose arguments spell a shape, which may have the old number of tokens in it."""


def remeasured(graph: FxGraph) -> FxGraph:
    """The graph with the shapes that it now has; a fixed number of tokens in a `view` becomes the new one.

    Raises:
        PassError: an operator cannot take the new shapes.
    """
    nodes = graph.module.graph.nodes
    symbols = _symbols(n.meta["val"] for n in nodes if n.op == "placeholder")
    mode = FakeTensorMode()
    old: dict[int, int] = {}
    shrunk: set[fx.Node] = set()
    now: dict[fx.Node, Any] = {}
    for node in nodes:
        if node.op == "output":
            continue
        before = _plain(node.meta.get("val"), symbols)
        with mode:
            if node.op == "call_function":
                now[node] = _value(node, before, now, old)
            else:
                now[node] = torch.empty(before or [], dtype=node.meta["val"].dtype)
        changed = _changed(before, _plain(now[node], symbols))
        if not changed and shrunk & set(node.all_input_nodes) and _is_pointwise(node):
            raise PassError(
                f"{node.name}: has a place for each token, and some are gone; stand_in: learned or mean can"
            )
        if changed:
            shrunk.add(node)
            old |= changed
            node.meta["val"] = _symbolic(now[node], node.meta["val"], symbols)
    graph.module.recompile()
    return graph


def _symbols(inputs: Iterable[torch.Tensor]) -> dict[str, tuple[int, Any]]:
    """For each size that is only known at run time, a prime that stands for it: no fixed size is a multiple of it."""
    found = {str(size): size for value in inputs for size in value.shape if not isinstance(size, int)}
    return {name: (prime, size) for prime, (name, size) in zip((10007, 20011, 30011), found.items(), strict=False)}


def _plain(value: Any, symbols: Mapping[str, tuple[int, Any]]) -> list[int] | None:
    """A tensor's shape in numbers; None for what is no tensor."""
    if not isinstance(value, torch.Tensor):
        return None
    return [size if isinstance(size, int) else _number(size, symbols) for size in value.shape]


def _number(size: Any, symbols: Mapping[str, tuple[int, Any]]) -> int:
    expression = size.node.expr
    return int(expression.subs({symbol: symbols[str(symbol)][0] for symbol in expression.free_symbols}))


def _symbolic(value: torch.Tensor, before: torch.Tensor, symbols: Mapping[str, tuple[int, Any]]) -> torch.Tensor:
    """A tensor of this shape, with the sizes only known at run time in it."""
    sizes: list[Any] = []
    for size in value.shape:
        owner = next((each for each in symbols.values() if size % each[0] == 0), None)
        sizes.append(size if owner is None else owner[1] * (size // owner[0]) if size != owner[0] else owner[1])
    with before.fake_mode:  # type: ignore[attr-defined]
        return torch.empty(sizes, dtype=value.dtype)


def _changed(before: list[int] | None, after: list[int] | None) -> dict[int, int]:
    """Sizes that were and are now, where they differ."""
    if before is None or after is None or len(before) != len(after):
        return {}
    return {was: now for was, now in zip(before, after, strict=True) if was != now}


def _is_pointwise(node: fx.Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def _value(node: fx.Node, before: list[int] | None, now: Mapping[fx.Node, Any], old: Mapping[int, int]) -> Any:
    """What an operator gives on the shapes it now has."""

    def call() -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), now.__getitem__)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    sizes: Any = next((a for a in reversed(node.args) if isinstance(a, list | tuple)), ())
    stale = [i for i, size in enumerate(sizes) if isinstance(size, int) and size in old]
    products = [i for i, size in enumerate(sizes) if isinstance(size, fx.Node) and size.target is not SIZE]
    if node.target in _SIZED and (stale or (products and not _fits(call))):
        source = list(now[node.all_input_nodes[0]].shape)
        near = _beside(source, before or [], old) if node.target is not torch.ops.aten.expand.default else set()
        return _resized(node, list(sizes), [i for i in stale if not near or i in near], products, old, call)
    try:
        return call()
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        what = str(error).strip().splitlines()[0][:120]
        raise PassError(f"{node.name}: cannot do with fewer tokens: {what}; stand_in: learned or mean can") from error


def _fits(call: Callable[[], Any]) -> bool:
    try:
        call()
    except (RuntimeError, ValueError):
        return False
    return True


def _resized(
    node: fx.Node,
    sizes: list[Any],
    stale: list[int],
    products: list[int],
    old: Mapping[int, int],
    call: Callable[[], Any],
) -> Any:
    """Try which of the fixed sizes was the number of tokens; one answer must fit."""
    place = next(i for i, a in enumerate(node.args) if isinstance(a, list | tuple) and list(a) == sizes)

    def put(changed: list[Any]) -> None:
        node.args = (*node.args[:place], changed, *node.args[place + 1 :])

    fits = []
    for index in (None, *stale):
        put([old[size] if i == index else size for i, size in enumerate(sizes)])
        if _fits(call):
            fits.append(node.args[place])
    if not fits and node.target in _RESHAPES and len(products) == 1:
        # A product of batch and tokens: what is left over, then.
        put([-1 if i == products[0] else size for i, size in enumerate(sizes)])
        fits = [node.args[place]] if _fits(call) else []
    if len(fits) != 1:
        raise PassError(f"{node.name}: of {sizes}, which is the number of tokens is not plain; stand_in: learned can")
    put(list(fits[0]))  # type: ignore[arg-type]
    return call()


def _beside(source: list[int], result: list[int], old: Mapping[int, int]) -> set[int]:
    """Axes of a `view`'s result that are made of axes whose size has changed; empty if that is unknown."""
    back = {now: was for was, now in old.items()}
    for changed in [axis for axis, size in enumerate(source) if size in back]:
        before = [back[size] if axis == changed else size for axis, size in enumerate(source)]
        for left, right in _groups(before, result):
            if changed in left:
                return set(right)
    return set()


def _groups(left: list[int], right: list[int]) -> list[tuple[list[int], list[int]]]:
    """Axes of two shapes side by side, in the smallest runs of equal product; empty if the shapes do not match."""
    found, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        axes, others, a, b = [i], [j], left[i], right[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b and i < len(left):
                axes, a, i = [*axes, i], a * left[i], i + 1
            elif b < a and j < len(right):
                others, b, j = [*others, j], b * right[j], j + 1
            else:
                return []
        found.append((axes, others))
    return found if i == len(left) and j == len(right) else []
