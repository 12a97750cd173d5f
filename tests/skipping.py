"""Tiny models with gates before their feed-forward blocks, made by hand, for tests of passes and of the runtime."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from adaptc import skip  # noqa: F401  (declares adaptc::skip)
from adaptc.graph import FxGraph, OnnxGraph
from adaptc.passes import Pipeline
from adaptc.passes.branch import Branch
from adaptc.passes.fuse_norms import FuseNorms
from adaptc.passes.fuse_projections import FuseProjections
from adaptc.passes.kv_cache import KvCache
from adaptc.passes.logits_from import LogitsFrom
from adaptc.passes.lower import Lower
from adaptc.program import Program
from tests import tiny

GATED = (1, 2)
"""The layers that have a gate; the tiny models have three or more layers."""

RANK = 4
aten = torch.ops.aten


@cache
def gated(family: str, *, low_rank: bool = False) -> FxGraph:
    """The family's model with a linear gate before the feed-forward of layers 1 and 2."""
    return with_gates(tiny.fx(family), low_rank=low_rank)


def with_gates(whole: FxGraph, *, low_rank: bool = False) -> FxGraph:
    """A fork of a captured graph, with gates."""
    graph = whole.fork()
    module = graph.module
    ids = next(n for n in module.graph.nodes if n.target == "input_ids")
    last = [n for n in module.graph.nodes if n.op == "placeholder"][-1]
    with module.graph.inserting_after(last):
        threshold = module.graph.placeholder("threshold")
    with ids.meta["val"].fake_mode:
        threshold.meta = {"val": torch.empty(ids.meta["val"].shape, dtype=torch.float32), "path": ""}
    random = torch.Generator().manual_seed(3)
    for layer in GATED:
        _gate(module, f"model.layers.{layer}", threshold, random, low_rank=low_rank)
    module.graph.lint()
    module.recompile()
    return graph


def _gate(module: fx.GraphModule, layer: str, threshold: fx.Node, random: torch.Generator, *, low_rank: bool) -> None:
    nodes = list(module.graph.nodes)
    state = _result(nodes, f"{layer}.input_layernorm")
    normed = next(n for n in nodes if n.meta.get("path", "").startswith(f"{layer}.mlp.")).args[0]
    assert isinstance(normed, fx.Node)
    full = _result(nodes, f"{layer}.mlp")
    width = full.meta["val"].shape[-1]
    new = _Builder(module, full, random)
    gate = f"{layer}.skip.gate"
    product = new.call(aten.matmul.default, gate, state, new.weight(f"{gate}.weight", width, 1))
    logit = new.call(
        aten.squeeze.dim, gate, new.call(aten.add.Tensor, gate, product, new.weight(f"{gate}.bias", 1)), -1
    )
    cheap = f"{layer}.skip.cheap"
    if low_rank:
        a, b = new.weight(f"{cheap}.a", RANK, width), new.weight(f"{cheap}.b", width, RANK)
        inner = new.call(aten.silu.default, cheap, new.call(aten.linear.default, cheap, normed, a))
        instead = new.call(aten.linear.default, cheap, inner, b)
    else:
        instead = new.call(aten.mul.Tensor, cheap, full if normed is full else normed, 0.0)
    chosen = new.call(torch.ops.adaptc.skip.default, f"{layer}.skip", logit, threshold, full, instead)
    full.replace_all_uses_with(chosen, delete_user_cb=lambda user: user is not chosen)


class _Builder:
    """Adds nodes after a node, each after the one before."""

    def __init__(self, module: fx.GraphModule, after: fx.Node, random: torch.Generator) -> None:
        self.module, self.after, self.random = module, after, random

    def call(self, target: Any, path: str, *args: Any) -> fx.Node:
        with self.module.graph.inserting_after(self.after):
            node = self.module.graph.call_function(target, args)
        values = [a.meta["val"] if isinstance(a, fx.Node) else a for a in args]
        fake = next(v.fake_mode for v in values if hasattr(v, "fake_mode"))
        with fake:
            node.meta = {"val": target(*values), "path": path}
        self.after = node
        return node

    def weight(self, name: str, *shape: int) -> fx.Node:
        owner, _, leaf = name.rpartition(".")
        place = self.module
        for part in owner.split("."):
            if part not in place._modules:
                place.add_module(part, torch.nn.Module())
            place = getattr(place, part)
        value = torch.nn.Parameter(torch.randn(shape, generator=self.random) * 0.3, requires_grad=False)
        place.register_parameter(leaf, value)
        fake = self.after.meta["val"].fake_mode
        with self.module.graph.inserting_after(self.after):
            node = self.module.graph.get_attr(name)
        node.meta = {"val": fake.from_tensor(value), "path": owner}
        self.after = node
        return node


def _result(nodes: list[fx.Node], path: str) -> fx.Node:
    """What leaves a module."""
    inside = {n for n in nodes if n.meta.get("path") == path or n.meta.get("path", "").startswith(f"{path}.")}
    [result] = [n for n in inside if n.op == "call_function" and any(user not in inside for user in n.users)]
    return result


@cache
def lowered(family: str, *, low_rank: bool = False, fused: bool = True) -> Program:
    """A gated program before `branch`: after `lower`, `kv_cache`, `logits_from` and, if `fused`, the fusions."""
    fusions = (FuseNorms(), FuseProjections()) if fused else ()
    program = tiny.program(family).with_graph("lm", gated(family, low_rank=low_rank))
    return Pipeline((Lower(), KvCache(max_tokens=64), LogitsFrom(), *fusions)).run(program)


@cache
def branched(family: str, *, low_rank: bool = False) -> Program:
    """A gated program after all passes of a float target."""
    return Pipeline((Branch(),)).run(lowered(family, low_rank=low_rank))


def oracle(
    family: str, ids: npt.NDArray[Any], threshold: npt.NDArray[np.float32], *, low_rank: bool = False
) -> npt.NDArray[np.float32]:
    """Logits of the FX graph, float32[batch, tokens, vocab], under a threshold for each token."""
    positions = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
    feeds = {"input_ids": ids, "position_ids": positions, "threshold": threshold}
    return gated(family, low_rank=low_rank).run(feeds)["logits"].astype(np.float32)


def onnx(program: Program) -> OnnxGraph:
    """The one graph of a program."""
    return program.graph("lm", OnnxGraph)
