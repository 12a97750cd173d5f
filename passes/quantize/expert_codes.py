"""Codes of a mixture's experts, each expert's chosen on the rows that its router sends to it.

One expert after another: its gate and up are rounded by the second moments of its rows, and its down by those of what
the rounded ones give. So there are the moments of one expert in each thread, however many a block has. A row counts as
its error does in the result: by the square of its share.

A router sends few rows of a text to some experts, and none to others; fewer than a matrix has columns say nothing of
most directions. So a sample of all rows of the block counts beside an expert's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import Tensor, fx

from adaptc.ir.blocks import Blocks
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.operators.experts import inner_states
from adaptc.ir.unread.tensors import in_memory
from adaptc.passes.quantize.blockwise import concatenate, curvature_of, dequantized, quantize_blocks, split
from adaptc.passes.quantize.kept_codes import Form
from adaptc.passes.quantize.linears import tensor_of
from adaptc.passes.quantize.walk import CalibrationWalk, scaled_rows

PRIOR = 4
"""The sample counts as much as so many rows of an expert's own: a matrix's columns divided by this."""

SAMPLE = 2
"""Rows of the sample for each column."""


@dataclass(frozen=True)
class RoutedRows:
    """What a block's experts read.

    Attributes:
        states: float32 [rows, width].
        chosen: int64 [rows, k], the experts that each row goes to.
        shares: float32 [rows, k], what their results are multiplied by.
    """

    states: Tensor
    chosen: Tensor
    shares: Tensor

    @classmethod
    def of(cls, parts: Sequence[Sequence[Tensor]]) -> RoutedRows:
        """Those of states [..., width], choices [..., k] and shares [..., k], each in parts."""
        states, chosen, shares = (torch.cat([each.reshape(-1, each.shape[-1]) for each in part]) for part in parts)
        return cls(states.float(), chosen, shares.float())

    def sample(self) -> Tensor:
        """Some of all rows, evenly spread: float32 [rows, width]."""
        most = SAMPLE * self.states.shape[1]
        return self.states[:: -(-len(self.states) // most)]

    @cached_property
    def prior(self) -> Tensor:
        """Second moments of the sample, which all experts of the block have: float32 [width, width]."""
        return _mean_moments(self.sample())

    def of_expert(self, expert: int) -> tuple[Tensor, Tensor]:
        """The rows of an expert, int64 [rows], and their shares, float32 [rows, 1]."""
        rows, places = torch.where(self.chosen == expert)
        return rows, self.shares[rows, places, None]


def quantize_mixture(
    walk: CalibrationWalk, graph: FxGraph, node: fx.Node, names: tuple[str, str], forms: Mapping[str, Form]
) -> dict[str, Blocks]:
    """Choose the codes of a block's experts.

    Args:
        walk: It has run what the experts read.
        graph: Its graph.
        node: The experts.
        names: Of their weights: gate and up [experts, 2 · inner, width], down [experts, width, inner].
        forms: How each weight is stored.

    Returns:
        By name, codes of all experts, one below the other.

    Raises:
        PassError: a weight or a row is not finite.
    """
    rows = RoutedRows.of([walk.values(each) for each in node.args[:3]])  # type: ignore[arg-type]
    matrices = [in_memory(tensor_of(graph.module, name).detach()) for name in names]
    pair = forms[names[0]], forms[names[1]]

    def one(expert: int) -> tuple[Blocks, Blocks]:
        return quantize_expert(rows, expert, (matrices[0][expert], matrices[1][expert]), pair)

    found = walk.each(one, range(len(matrices[0])))
    return {name: concatenate([each[place] for each in found]) for place, name in enumerate(names)}


def quantize_expert(
    rows: RoutedRows, expert: int, matrices: tuple[Tensor, Tensor], forms: tuple[Form, Form]
) -> tuple[Blocks, Blocks]:
    """Choose the codes of one expert: of gate and up, and of down.

    Args:
        rows: What the block's experts read.
        expert: Its number.
        matrices: Gate and up, float [2 · inner, width], and down, float [width, inner].
        forms: How each is stored.

    Raises:
        PassError: a weight or a row is not finite.
    """
    with torch.no_grad():
        places, shares = rows.of_expert(expert)
        read = rows.states[places]
        gate_up = _quantized(matrices[0], read, shares, lambda: rows.prior, forms[0])
        rounded = dequantized(gate_up, read.device)
        inner = inner_states(read, rounded)
        return gate_up, _quantized(
            matrices[1], inner, shares, lambda: _mean_moments(inner_states(rows.sample(), rounded)), forms[1]
        )


def run_mixture(walk: CalibrationWalk, node: fx.Node, gate_up: Blocks, down: Blocks) -> None:
    """Run a block's experts with their matrices rounded."""
    experts = _experts(node)

    def mixed(interpreter: fx.Interpreter) -> Tensor:
        states, chosen, shares = (interpreter.env[each] for each in node.args[:3])  # type: ignore[index]
        rows = RoutedRows.of([[states], [chosen], [shares]])
        total = torch.zeros_like(rows.states)
        for expert, (first, second) in enumerate(zip(apart(gate_up, experts), apart(down, experts), strict=True)):
            places, share = rows.of_expert(expert)
            if len(places):
                inner = inner_states(rows.states[places], dequantized(first, total.device))
                total.index_add_(0, places, F.linear(inner, dequantized(second, total.device)) * share)
        return total.reshape(states.shape).to(states.dtype)

    walk.run_as(node, mixed)


def apart(blocks: Blocks, experts: int) -> Iterator[Blocks]:
    """The codes of each expert's matrix."""
    return iter(split(blocks, [blocks.rows // experts] * experts))


def _experts(node: fx.Node) -> int:
    """How many experts a block has."""
    weight = node.args[3]
    assert isinstance(weight, fx.Node)
    return int(weight.meta["val"].shape[0])


def _quantized(matrix: Tensor, own: Tensor, shares: Tensor, prior: Callable[[], Tensor], form: Form) -> Blocks:
    """Round a matrix by what it reads: rows of its own with their shares, and the moments of a sample of all."""
    numbers = matrix.float().cpu().numpy()
    if form.bits == 8:
        return quantize_blocks(numbers, 8, form.block_size, symmetric=form.symmetric)
    curve = curvature_of(_moments(own, shares, prior()), form.block_size)
    return quantize_blocks(np.ascontiguousarray(numbers), 4, form.block_size, symmetric=form.symmetric, hessian=curve)


def _moments(own: Tensor, shares: Tensor, prior: Tensor) -> Tensor:
    """Second moments of rows of one length each: float32 [columns, columns]; only ratios matter."""
    if not len(own):
        return prior
    weighted = scaled_rows(own) * shares
    return (weighted.T @ weighted).add_(prior, alpha=float(own.shape[1] / PRIOR * shares.square().mean()))


def _mean_moments(rows: Tensor) -> Tensor:
    """Mean of x xᵀ over rows x that are brought to one length, as those that linear layers read are."""
    scaled = scaled_rows(rows)
    return (scaled.T @ scaled).div_(len(scaled))
