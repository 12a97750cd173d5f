"""Tiny models with gates before their feed-forward blocks, made by hand, for tests of passes and of the runtime."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Program
from adaptc.passes import Pass, Pipeline
from adaptc.passes.decoder.fuse_norms import FuseNorms
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.decoder.kv_cache import KvCache
from adaptc.passes.decoder.logits_from import LogitsFrom
from adaptc.passes.lower.lower import Lower
from adaptc.passes.skip_ffn import gating
from adaptc.passes.skip_ffn.branch import Branch
from adaptc.runtime.bundle.skip_gates import SkipGates
from tests.models import tiny

GATED = (1, 2)
"""The layers that have a gate; the tiny models have three or more layers."""

RANK = 4

GPU_RANK = 8
"""Rank of cheap paths that kernels on a GPU multiply by: they read columns by eights."""


@cache
def gated(family: str, *, low_rank: bool = False, rank: int = RANK) -> FxGraph:
    """The family's model with a linear gate before the feed-forward of layers 1 and 2."""
    return with_gates(tiny.fx(family), low_rank=low_rank, rank=rank)


def with_gates(whole: FxGraph, *, low_rank: bool = False, rank: int = RANK) -> FxGraph:
    """A fork of a captured graph, with gates."""
    random = torch.Generator().manual_seed(3)
    blocks = gating.ffn_blocks(whole)
    shapes = [gating.parameters(blocks[layer], rank if low_rank else 0) for layer in GATED]
    weights = {name: torch.randn(shape, generator=random) * 0.3 for part in shapes for name, shape in part.items()}
    return gating.learned(whole, GATED, weights)


@dataclass(frozen=True, slots=True)
class Gating(Pass):
    """Stands for `skip_ffn`: gates without training; a test's own class says what a bundle is told of them."""

    name: ClassVar[str] = "gating"
    gates: ClassVar[SkipGates]

    def apply(self, program: Program) -> Program:
        gated = with_gates(program.graph("lm", FxGraph), low_rank=True)
        return replace(program.with_graph("lm", gated), gates={"lm": self.gates})


@cache
def lowered(family: str, *, low_rank: bool = False, fused: bool = True, rank: int = RANK) -> Program:
    """A gated program before `branch`: after `lower`, `kv_cache`, `logits_from` and, if `fused`, the fusions."""
    fusions = (FuseNorms(), FuseProjections()) if fused else ()
    program = tiny.program(family).with_graph("lm", gated(family, low_rank=low_rank, rank=rank))
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
