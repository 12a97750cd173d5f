"""The trained parts of a stitched route: the stitch where one backbone hands over to another, and low-rank adapters.

    z = norm(h)                                   RMS 1, no scale: a norm's scale would only be folded into W
    linear:    h' = W z + b
    residual:  h' = W z + b + B silu(A z)
    within one backbone the state itself passes on:  h' = h + …

An adapter adds B (A x) to what an attention or a feed-forward block gives, x being what that block reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from adaptc.errors import PassError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.marks import path_of
from adaptc.passes.skip_ffn.gating import Builder, FfnBlock, ffn_blocks
from adaptc.passes.stitch.options import JoinOptions
from adaptc.passes.stitch.slices import LayeredDecoder

aten = torch.ops.aten
EPSILON = 1e-6
Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Seam:
    """A place where a route goes from one run of layers to another.

    Attributes:
        route: Name of the route.
        number: Which of the route's seams it is, from 0.
        source: (backbone, layer): the state that this layer of the backbone would read is handed over.
        target: (backbone, layer) that reads it.
        widths: Size of the state before and after.
    """

    route: str
    number: int
    source: tuple[str, int]
    target: tuple[str, int]
    widths: tuple[int, int]

    @property
    def stem(self) -> str:
        """The stem of its weights' names."""
        return f"stitch.{self.route}.{self.number}"

    @property
    def passes(self) -> bool:
        """Whether the state itself goes on, as the two sides are one backbone."""
        return self.source[0] == self.target[0]

    def shapes(self, join: JoinOptions) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its weights."""
        before, after = self.widths
        shapes: dict[str, tuple[int, ...]] = {f"{self.stem}.weight": (after, before), f"{self.stem}.bias": (after,)}
        if join.kind == "residual":
            shapes |= {f"{self.stem}.a": (join.rank, before), f"{self.stem}.b": (after, join.rank)}
        return shapes


def add_stitch(module: fx.GraphModule, state: fx.Node, seam: Seam, weights: Weights) -> fx.Node:
    """Add a stitch after a state; the new state, float [batch, tokens, width of the other side]."""
    new, stem = Builder(module, state), seam.stem
    ones = {f"{stem}.norm.weight": torch.ones(seam.widths[0])}
    square = new.call(aten.pow.Tensor_Scalar, f"{stem}.norm", state, 2)
    mean = new.call(aten.mean.dim, f"{stem}.norm", square, [-1], True)
    scale = new.call(aten.rsqrt.default, f"{stem}.norm", new.call(aten.add.Tensor, f"{stem}.norm", mean, EPSILON))
    normed = new.call(aten.mul.Tensor, f"{stem}.norm", state, scale)
    # A scale of ones, so that it is the norm that every target has a kernel for.
    z = new.call(aten.mul.Tensor, f"{stem}.norm", new.weight(f"{stem}.norm.weight", ones), normed)
    weight, bias = new.weight(f"{stem}.weight", weights), new.weight(f"{stem}.bias", weights)
    result = new.call(aten.linear.default, stem, z, weight, bias)
    if f"{stem}.a" in weights:
        inner = new.call(aten.linear.default, f"{stem}.inner", z, new.weight(f"{stem}.a", weights))
        inner = new.call(aten.silu.default, f"{stem}.inner", inner)
        outer = new.call(aten.linear.default, f"{stem}.outer", inner, new.weight(f"{stem}.b", weights))
        result = new.call(aten.add.Tensor, stem, result, outer)
    return new.call(aten.add.Tensor, stem, state, result) if seam.passes else result


def adapter_shapes(decoder: LayeredDecoder, layers: Iterable[int], route: str, rank: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a route's adapters on some layers of a decoder."""
    blocks = ffn_blocks(decoder.graph)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        stem = f"{decoder.name}.{blocks[layer].layer}.adapter.{route}"
        for part in ("attention", "mlp"):
            shapes |= {f"{stem}.{part}.a": (rank, decoder.width), f"{stem}.{part}.b": (decoder.width, rank)}
    return shapes


def add_adapters(graph: FxGraph, route: str, weights: Weights) -> None:
    """Put adapters on every block of a graph that is still being made."""
    for stem, reads, result in list(_places(graph, route)):
        new = Builder(graph.module, result)
        inner = new.call(aten.linear.default, f"{stem}.a", reads, new.weight(f"{stem}.a", weights))
        outer = new.call(aten.linear.default, f"{stem}.b", inner, new.weight(f"{stem}.b", weights))
        _take_over(result, new.call(aten.add.Tensor, stem, result, outer))
    graph.module.graph.lint()
    graph.module.recompile()


def _take_over(old: fx.Node, new: fx.Node) -> None:
    """Let a node that reads another stand where that was read."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def _places(graph: FxGraph, route: str) -> Iterator[tuple[str, fx.Node, fx.Node]]:
    """For each block: the stem of its adapter's names, what the block reads, what it gives."""
    for block in ffn_blocks(graph):
        stem = f"{block.layer}.adapter.{route}"
        yield f"{stem}.attention", block.state, _attention(graph, block)
        yield f"{stem}.mlp", block.normed, block.result


def _attention(graph: FxGraph, block: FfnBlock) -> fx.Node:
    """Return the result of a layer's attention, which is that of its output projection."""
    path = f"{block.layer}.self_attn.o_proj"
    projections = [n for n in graph.module.graph.nodes if n.target is aten.linear.default and path_of(n) == path]
    if len(projections) != 1:
        raise PassError(f"{block.layer}: {len(projections)} projections at '{path}'; adapters need one")
    projection: fx.Node = projections[0]
    return projection
