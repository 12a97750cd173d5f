"""Predictions without their logits: a graph cut before its head, and the divergence of two of them in tiles.

The logits of a step of 16,384 tokens over 151,936 words are 10 GB in float32, and a training needs five such arrays.
Here the head is applied to the positions that count alone, some thousand at a time, and what is left of a tile is the
gradient at what the head reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from adaptc.ir.fx_graph import FxGraph, attribute

TOGETHER = 1 << 28
"""Logits of a tile: 1 GiB of float32."""

aten = torch.ops.aten


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """A graph, and the head that makes logits of what it gives.

    Attributes:
        graph: Its last output is float [sequences, tokens, width], or the logits themselves.
        head: [vocab, width]; None where the graph gives logits.
    """

    graph: FxGraph
    head: torch.Tensor | None

    def logits(self, read: torch.Tensor) -> torch.Tensor:
        """Return the logits of some positions: [positions, width] -> [positions, vocab]."""
        return read if self.head is None else read.to(self.head.dtype) @ self.head.T

    def gradient(self, at_logits: torch.Tensor) -> torch.Tensor:
        """Return the gradient at what the head reads, of that at the logits."""
        return at_logits if self.head is None else at_logits.to(self.head.dtype) @ self.head


def cut_before_head(graph: FxGraph, dtype: torch.dtype | None = None) -> Predictor:
    """Cut a graph that gives logits before the linear map that makes them.

    Args:
        graph: Its last output is logits; it stays as it is.
        dtype: What the head computes in; None for its own.

    Returns:
        The graph with the head beside it; whole, where something comes after the linear map (a soft cap, a scale).
    """
    fork = graph.fork()
    output = fork.module.graph.output_node()
    results: Any = output.args[0]
    *others, logits = results
    inputs: tuple[Any, ...] = logits.args
    if logits.target is not aten.linear.default or len(inputs) != 2 or inputs[1].op != "get_attr":
        return Predictor(graph, None)
    weight: torch.Tensor = attribute(fork.module, str(inputs[1].target)).detach()
    output.args = ((*others, inputs[0]),)
    fork.module.graph.eliminate_dead_code()
    fork.module.recompile()
    return Predictor(fork, weight if dtype is None else weight.to(dtype))


def divergence(target: torch.Tensor, student: Predictor, read: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Return the mean KL(target || student) over positions, nats a token, and its gradient at `read`.

    It is computed by hand and in tiles, as float32 probabilities of a whole step do not fit beside each other.

    Args:
        target: Logits of the teacher, float [positions, vocab].
        student: Whose head reads `read`.
        read: float [positions, width].
    """
    gradient = torch.empty_like(read)
    total = torch.zeros((), device=read.device)
    for tile in _tiles(target):
        each, at_logits = _divergence(target[tile], student.logits(read[tile]))
        total += each
        gradient[tile] = student.gradient(at_logits) / max(1, len(target))
    return float(total) / max(1, len(target)), gradient


def _divergence(target: torch.Tensor, predicted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of the KL over positions, and its gradient at `predicted`."""
    log_p, log_q = (each.float().log_softmax(-1) for each in (target, predicted))
    p = log_p.exp()
    total = p.mul(log_p.sub_(log_q)).sum()
    return total, log_q.exp_().sub_(p)


def surprise(predictor: Predictor, read: torch.Tensor, following: torch.Tensor) -> float:
    """Return the summed negative log likelihood of the tokens that follow, nats.

    Args:
        predictor: Whose head reads `read`.
        read: float [positions, width].
        following: int64 [positions].
    """
    total = 0.0
    for at in range(0, len(read), 1024):
        logits = predictor.logits(read[at : at + 1024]).float()
        total += float(torch.nn.functional.cross_entropy(logits, following[at : at + 1024], reduction="sum"))
    return total


def _tiles(target: torch.Tensor) -> Iterator[slice]:
    size = max(1, TOGETHER // max(1, target.shape[1]))
    yield from (slice(at, at + size) for at in range(0, len(target), size))
