"""Put gates into an FX graph: before a decoder layer's feed-forward block, a choice whether it runs.

    n = norm(h)                          n = norm(h)
    h = h + mlp(n)             ->        h = h + skip(logit, threshold, mlp(n), cheap(n))

Blocks are found by module path (`….layers.3.mlp`); one of experts is skipped as a whole, its router with it. Norms and
residual sums stay where they are, so that whatever fuses them in a dense graph fuses them here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from adaptc.errors import PassError
from adaptc.ir.fx_graph import FxGraph, assign
from adaptc.ir.marks import LAYER, path_of
from adaptc.ir.operators import (
    experts,  # noqa: F401  (declares adaptc::experts)
    skip,  # noqa: F401  (declares adaptc::skip)
)
from adaptc.runtime.bundle.names import PIXEL_VALUES, THRESHOLD

aten = torch.ops.aten

BLOCKS = ("mlp", "block_sparse_moe", "feed_forward")
"""What a feed-forward block is called within its layer."""


@dataclass(frozen=True, slots=True)
class FfnBlock:
    """A feed-forward block of a captured decoder.

    Attributes:
        layer: Module path of its layer, `model.layers.3`.
        state: The normed state before the layer's attention, float [batch, tokens, width].
        normed: What the block reads, float [batch, tokens, width].
        result: What it gives, of the same shape.
        weights: Names of its three matrices: gate and up [inner width, width], down [width, inner width]. Or of a
            mixture's two: gate and up [experts, 2 · inner width, width], down [experts, width, inner width].
    """

    layer: str
    state: fx.Node
    normed: fx.Node
    result: fx.Node
    weights: tuple[str, ...]


def ffn_blocks(graph: FxGraph) -> list[FfnBlock]:
    """The feed-forward blocks of a graph, in the order of layers.

    Raises:
        PassError: there is none, or one that is not a gated block between a norm and a residual sum.
    """
    layers: dict[str, list[fx.Node]] = {}
    for node in graph.module.graph.nodes:
        if node.op == "call_function" and (match := LAYER.match(path_of(node))):
            layers.setdefault(match.group(), []).append(node)
    if PIXEL_VALUES in graph.inputs:
        raise PassError(f"{PIXEL_VALUES}: its encoder has layers too; drop_modality before this pass is right")
    blocks = [_block(layer, nodes) for layer, nodes in layers.items()]
    if not blocks:
        raise PassError("no decoder layers ('….layers.N') in this graph; skip_ffn needs a decoder")
    return blocks


def _block(layer: str, nodes: list[fx.Node]) -> FfnBlock:
    path = next((f"{layer}.{name}" for name in BLOCKS if any(_within(n, f"{layer}.{name}") for n in nodes)), "")
    inside = [n for n in nodes if path and _within(n, path)]
    ends = [n for n in inside if any(user not in inside for user in n.users)]
    reads = dict.fromkeys(
        source
        for n in inside
        for source in n.all_input_nodes
        if source not in inside and source.op != "get_attr" and hasattr(source.meta.get("val"), "dtype")
    )
    linears = sum(n.target is aten.linear.default for n in inside)
    mixtures = [n for n in inside if n.target is torch.ops.adaptc.experts.default]
    if len(ends) != 1 or len(reads) != 1 or (linears != 3 and len(mixtures) != 1):
        raise PassError(
            f"{layer}: no gated feed-forward block at '{path or f'{layer}.mlp'}' ({linears} linear layers, "
            f"{len(reads)} inputs, {len(ends)} results); three linear layers with one input and one result are right"
        )
    states = [n for n in nodes if _within(n, f"{layer}.input_layernorm")]
    inner = set(states)
    state = [n for n in states if any(user not in inner for user in n.users)]
    if len(state) != 1:
        raise PassError(f"{layer}: no norm at '{layer}.input_layernorm'; gates read its result")
    matrices = tuple(str(n.target) for n in mixtures[0].all_input_nodes[-2:]) if mixtures else _matrices(inside)
    return FfnBlock(layer, state[0], next(iter(reads)), ends[0], matrices)


def _matrices(inside: list[fx.Node]) -> tuple[str, str, str]:
    """Names of a block's gate, up and down matrices: an activation function follows the first."""
    first, second, down = (n for n in inside if n.target is aten.linear.default)
    if all(user.target is aten.mul.Tensor for user in first.users):
        first, second = second, first
    gate, up, out = (str(n.all_input_nodes[1].target) for n in (first, second, down))
    return gate, up, out


def neurons(module: fx.GraphModule, block: FfnBlock) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A block's own neurons, of a mixture those of all its experts.

    Returns:
        Gate and up, float32 [neurons, width]; down, float32 [width, neurons].
    """
    matrices = [module.get_parameter(name).detach().float() for name in block.weights]
    if len(matrices) == 3:
        return matrices[0], matrices[1], matrices[2]
    gate, up = (half.flatten(0, 1) for half in matrices[0].chunk(2, 1))
    return gate, up, matrices[1].transpose(1, 2).flatten(0, 1).T


def _within(node: fx.Node, path: str) -> bool:
    place = path_of(node)
    return place == path or place.startswith(f"{path}.")


def parameters(block: FfnBlock, rank: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a learned gate's parameters; rank 0 has no cheap path.

    A cheap path is a block of the same form with `rank` inner neurons: down(silu(gate n) · up n) + bias.
    """
    width = int(block.result.meta["val"].shape[-1])
    stem = f"{block.layer}.skip"
    shapes: dict[str, tuple[int, ...]] = {f"{stem}.gate.weight": (width, 1), f"{stem}.gate.bias": (1,)}
    if rank:
        cheap = f"{stem}.cheap"
        shapes |= {f"{cheap}.gate": (rank, width), f"{cheap}.up": (rank, width)}
        shapes |= {f"{cheap}.down": (width, rank), f"{cheap}.bias": (width,)}
    return shapes


def learned(
    graph: FxGraph, layers: Sequence[int], weights: Mapping[str, torch.Tensor], leaders: Sequence[int] | None = None
) -> FxGraph:
    """A fork with a linear gate on the state before attention, and the weights' cheap path if they have one.

    Args:
        graph: A captured decoder.
        layers: Which layers get a gate.
        weights: By name, see `parameters`; shared, not copied.
        leaders: For each of the layers, the layer whose gate decides: itself or one before it; None for itself.
    """
    fork, threshold, blocks = _open(graph)
    said: dict[int, fx.Node] = {}
    for layer, leader in zip(layers, leaders or layers, strict=True):
        block = blocks[layer]
        stem = f"{block.layer}.skip"
        new = Builder(fork.module, block.result)
        if leader != layer:
            _choose(new, block, said[leader], threshold, weights)
            continue
        gate = f"{stem}.gate"
        product = new.call(aten.matmul.default, gate, block.state, new.weight(f"{gate}.weight", weights))
        total = new.call(aten.add.Tensor, gate, product, new.weight(f"{gate}.bias", weights))
        said[layer] = new.call(aten.squeeze.dim, gate, total, -1)
        _choose(new, block, said[layer], threshold, weights)
    return _closed(fork)


def static(graph: FxGraph, importance: Mapping[int, float], weights: Mapping[str, torch.Tensor]) -> FxGraph:
    """A fork whose gates say the same for every token: how important their layer is.

    Args:
        graph: A captured decoder.
        importance: By layer.
        weights: Weights of cheap paths; without one a skipped block gives zero.
    """
    fork, threshold, blocks = _open(graph)
    for layer, value in importance.items():
        block = blocks[layer]
        new = Builder(fork.module, block.result)
        name = f"{block.layer}.skip.gate.bias"
        _choose(new, block, new.weight(name, {name: torch.tensor([value])}), threshold, weights)
    return _closed(fork)


def cosine(graph: FxGraph, layers: Sequence[int], tau: float, k: int) -> FxGraph:
    """A fork that decides as FFN-SkipLLM does (arXiv:2404.03865, algorithm 1).

    Where a block ran and hardly turned its state, cos(h, h + mlp(norm h)) ≥ tau, the next k blocks are skipped. A gate
    says minus how many are still to be skipped, so a threshold of -0.5 is the paper, -inf dense, and between them
    fewer than k are skipped.

    Args:
        graph: A captured decoder.
        layers: The region in which blocks may be skipped, in order.
        tau: Cosine from which on blocks are skipped.
        k: How many.
    """
    fork, threshold, blocks = _open(graph)
    left: fx.Node | None = None
    for layer in layers:
        block = blocks[layer]
        new = Builder(fork.module, block.result)
        path = f"{block.layer}.skip.gate"
        if left is None:
            left = new.call(aten.zeros_like.default, path, threshold)
        logit = new.call(aten.neg.default, path, left)
        _choose(new, block, logit, threshold, {})
        after, before = residual(fork, block)
        new = Builder(fork.module, after)
        similarity = _cosine(new, path, before, after)
        starts = new.call(aten.mul.Tensor, path, new.call(aten.ge.Scalar, path, similarity, tau), float(k))
        skipped = new.call(aten.lt.Tensor, path, logit, threshold)
        left = new.call(aten.where.self, path, skipped, new.call(aten.sub.Tensor, path, left, 1.0), starts)
    return _closed(fork)


def _cosine(new: Builder, path: str, a: fx.Node, b: fx.Node) -> fx.Node:
    """Cosine of two states along their last axis: [batch, tokens]."""

    def dot(x: fx.Node, y: fx.Node) -> fx.Node:
        return new.call(aten.sum.dim_IntList, path, new.call(aten.mul.Tensor, path, x, y), [-1])

    lengths = new.call(aten.sqrt.default, path, new.call(aten.mul.Tensor, path, dot(a, a), dot(b, b)))
    return new.call(aten.div.Tensor, path, dot(a, b), lengths)


def residual(fork: FxGraph, block: FfnBlock) -> tuple[fx.Node, fx.Node]:
    """The sum that ends a layer, and what was in it before the feed-forward block's result was added."""
    sums = [n for n in fork.module.graph.nodes if n.target is aten.add.Tensor and path_of(n) == block.layer]
    parts = [arg for arg in sums[-1].args if isinstance(arg, fx.Node) and path_of(arg) == block.layer] if sums else []
    before = [arg for arg in parts if not _comes_from(arg, block.result)]  # Granite scales what it adds
    if len(before) != 1:
        raise PassError(f"{block.layer}: the feed-forward block's result goes into no residual sum")
    return sums[-1], before[0]


def _comes_from(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node reads another one, itself or through nodes between them."""
    return node is source or (node > source and any(_comes_from(each, source) for each in node.all_input_nodes))


def _open(graph: FxGraph) -> tuple[FxGraph, fx.Node, list[FfnBlock]]:
    """A fork with the input `threshold`."""
    if THRESHOLD in graph.inputs:
        raise PassError("this graph has gates; skip_ffn is applied once")
    fork = graph.fork()
    nodes = fork.module.graph.nodes
    ids = next(n for n in nodes if n.op == "placeholder")
    last = [n for n in nodes if n.op == "placeholder"][-1]
    with fork.module.graph.inserting_after(last):
        threshold = fork.module.graph.placeholder(THRESHOLD)
    with ids.meta["val"].fake_mode:
        threshold.meta = {"val": torch.empty(ids.meta["val"].shape, dtype=torch.float32), "path": ""}
    return fork, threshold, ffn_blocks(fork)


def _closed(fork: FxGraph) -> FxGraph:
    fork.module.graph.lint()
    fork.module.recompile()
    return fork


def _choose(
    new: Builder, block: FfnBlock, logit: fx.Node, threshold: fx.Node, weights: Mapping[str, torch.Tensor]
) -> None:
    """Put the choice between a block's result and its cheap path where the result was read."""
    cheap = f"{block.layer}.skip.cheap"
    if f"{cheap}.down" in weights:
        gate, up, down, bias = (new.weight(f"{cheap}.{leaf}", weights) for leaf in ("gate", "up", "down", "bias"))
        # Paths as those of a block's own projections, which fuse_projections finds by them.
        inner = new.call(aten.silu.default, cheap, new.call(aten.linear.default, f"{cheap}.gate", block.normed, gate))
        inner = new.call(aten.mul.Tensor, cheap, inner, new.call(aten.linear.default, f"{cheap}.up", block.normed, up))
        instead = new.call(aten.linear.default, f"{cheap}.down", inner, down, bias)
    else:
        instead = new.call(aten.mul.Tensor, cheap, block.normed, 0.0)
    chosen = new.call(torch.ops.adaptc.skip.default, f"{block.layer}.skip", logit, threshold, block.result, instead)
    block.result.replace_all_uses_with(chosen, delete_user_cb=lambda user: user is not chosen)


class Builder:
    """Adds nodes to a graph, each after the one before, with the shapes and paths that passes rely on."""

    def __init__(self, module: fx.GraphModule, after: fx.Node) -> None:
        self._module, self._after = module, after

    def call(self, target: Any, path: str, *args: Any) -> fx.Node:
        """A call of an operator; `path` is the module it is said to belong to."""
        with self._module.graph.inserting_after(self._after):
            node = self._module.graph.call_function(target, args)
        values = [arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args]
        fake = next(value.fake_mode for value in values if hasattr(value, "fake_mode"))
        with fake, enable_python_dispatcher():
            node.meta = {"val": target(*values), "path": path}
        self._after = node
        return node

    def weight(self, name: str, weights: Mapping[str, torch.Tensor]) -> fx.Node:
        """A parameter of this name."""
        owner = name.rpartition(".")[0]
        value = weights[name]
        parameter = value if isinstance(value, torch.nn.Parameter) else torch.nn.Parameter(value, requires_grad=False)
        assign(self._module, name, parameter)
        fake = self._after.meta["val"].fake_mode
        with self._module.graph.inserting_after(self._after):
            node = self._module.graph.get_attr(name)
        with fake:
            node.meta = {"val": torch.empty(parameter.shape, dtype=parameter.dtype), "path": owner}
        self._after = node
        return node
