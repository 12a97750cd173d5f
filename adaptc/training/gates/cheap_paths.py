"""Cheap paths: small feed-forward blocks that stand in for large ones, fitted to what those do, all layers at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)

from adaptc.runtime.progress import SILENT, Progress, counted

BATCH = 4096
"""Tokens in a step of fitting; it goes over all of them a hundred times at most."""

CHUNK = 8192
"""Tokens whose inner states are held at once."""

RATE = 1e-3
"""Learning rate of a first fit; one that goes on takes half."""

EVEN = 0.1
"""Share of the metric that is the same for all directions: a Fisher matrix of few tokens knows nothing of many."""


@dataclass(frozen=True, slots=True)
class CheapPaths:
    """Blocks down(silu(gate n) · up n) + bias, one for each of some layers.

    Attributes:
        gate: float32 [layers, rank, width].
        up: float32 [layers, rank, width].
        down: float32 [layers, width, rank].
        bias: float32 [layers, width].
    """

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    bias: torch.Tensor

    def result(self, layer: int, n: torch.Tensor) -> torch.Tensor:
        """Return the result of one path for its input, both float32 [tokens, width]."""
        return _inner(n, self.gate[layer], self.up[layer]) @ self.down[layer].T + self.bias[layer]

    def weights(self, layer: int) -> dict[str, torch.Tensor]:
        """Return copies of one path's matrices, by name."""
        parts = {"gate": self.gate, "up": self.up, "down": self.down, "bias": self.bias}
        return {name: each[layer].clone() for name, each in parts.items()}

    def only(self, layers: Sequence[int]) -> CheapPaths:
        """Return the paths of some layers."""
        where = list(layers)
        return CheapPaths(self.gate[where], self.up[where], self.down[where], self.bias[where])


def metric(slopes: torch.Tensor) -> torch.Tensor:
    """Return what a wrong result costs: symmetric float32 [layers, width, width], the mean of its diagonal 1.

    The loss of an error e is ½ (g · e)² to second order, so its mean is eᵀ G e with G = mean g gᵀ. The whole matrix
    serves better than its diagonal: ×1.100 against ×1.103 of dense perplexity at 25 % skipped (SmolLM2-135M, 224
    neurons, held-out text; docs/results/smollm2-skip.md).

    Args:
        slopes: [layers, tokens, width], gradients of the log likelihood by results; see `skip_ffn/importance.py`.
    """
    width = slopes.shape[-1]
    fisher = torch.zeros(len(slopes), width, width, device=slopes.device)
    for part in chunks(slopes.shape[1]):
        some = slopes[:, part].float()
        fisher += some.transpose(1, 2) @ some
    fisher /= fisher.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-30
    return (1 - EVEN) * fisher + EVEN * torch.eye(width, device=slopes.device)


def begun(
    inputs: torch.Tensor, results: torch.Tensor, costs: torch.Tensor, own: Sequence[Sequence[torch.Tensor]], rank: int
) -> CheapPaths:
    """Return paths of the blocks' own neurons that do most.

    Of SmolLM2-135M's middle blocks 170 of 1536 neurons leave 0.42 to 0.62 of the squared error, fitted 0.34 to 0.52;
    160 random ones without `up` 0.8 and 0.55.

    Args:
        inputs: Inputs of the blocks, [layers, tokens, width].
        results: Results of the blocks, [layers, tokens, width].
        costs: As `metric` gives them.
        own: For each layer the block's gate and up [inner width, width] and down [width, inner width].
        rank: Number of inner neurons of a path.
    """
    gates, ups = [], []
    for layer, (gate, up, down) in enumerate(own):
        used = torch.stack(
            [_inner(inputs[layer, part].float(), gate, up).square().sum(0) for part in chunks(inputs.shape[1])]
        ).sum(0)
        best = (used * (down.square() * costs[layer].diagonal()[:, None]).sum(0)).topk(rank).indices
        gates.append(gate[best])
        ups.append(up[best])
    return _solved(torch.stack(gates).float(), torch.stack(ups).float(), inputs, results)


def fitted(
    paths: CheapPaths,
    inputs: torch.Tensor,
    results: torch.Tensor,
    costs: torch.Tensor,
    random: torch.Generator,
    weights: torch.Tensor | None = None,
    progress: Progress = SILENT,
) -> CheapPaths:
    """Return paths with the least error on all tokens, or on those that matter.

    Args:
        paths: Paths to begin with.
        inputs: Inputs of the blocks, [layers, tokens, width].
        results: Results of the blocks, [layers, tokens, width].
        costs: As `metric` gives them.
        random: Generator that draws batches.
        weights: float32 [layers, tokens], weight of each token's error; None for equal weights.
        progress: Told of the optimizer's steps.
    """
    tokens = inputs.shape[1]
    scale = torch.stack([each.float().std() for each in results])[:, None] + 1e-12
    root = torch.linalg.cholesky(costs.double()).float()  # the squared length of e @ root is eᵀ G e
    start = (paths.gate, paths.up, paths.down / scale[..., None], paths.bias / scale)
    gate, up, down, bias = parts = [each.clone().requires_grad_() for each in start]
    optimizer = torch.optim.Adam(parts)
    steps = min(1500, max(50, 100 * tokens // BATCH))
    rate = RATE if weights is None else RATE / 2
    for step in counted(range(steps), progress):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * (1 - step / steps)
        some = torch.randint(tokens, (min(BATCH, tokens),), generator=random).to(inputs.device)
        n, y = inputs[:, some].float(), results[:, some].float()
        with torch.enable_grad():
            result = _inner(n, gate, up) @ down.transpose(1, 2) + bias[:, None]
            error = ((result - y / scale[..., None]) @ root).square().mean(-1)
            loss = (error if weights is None else error * weights[:, some]).mean(1).sum()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
        optimizer.step()
    return _solved(gate.detach(), up.detach(), inputs, results, weights)


def _inner(n: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(n @ gate.transpose(-1, -2)) * (n @ up.transpose(-1, -2))


def _solved(
    gate: torch.Tensor,
    up: torch.Tensor,
    inputs: torch.Tensor,
    results: torch.Tensor,
    weights: torch.Tensor | None = None,
) -> CheapPaths:
    """Solve down and bias for the least squared error, with a ridge; the metric does not matter to it."""
    solutions = []
    for layer in range(len(gate)):
        rank = gate.shape[1]
        gram = torch.zeros(rank + 1, rank + 1, device=gate.device)
        right = torch.zeros(rank + 1, results.shape[-1], device=gate.device)
        for part in chunks(inputs.shape[1]):
            inner = _inner(inputs[layer, part].float(), gate[layer], up[layer])
            inner = torch.cat([inner, torch.ones(len(inner), 1, device=gate.device)], 1)
            counted = inner if weights is None else inner * weights[layer, part, None]
            gram += counted.T @ inner
            right += counted.T @ results[layer, part].float()
        ridge = 1e-4 * gram.diagonal()[:-1].mean() + 1e-12
        gram.diagonal()[:-1].add_(ridge)
        solutions.append(torch.linalg.solve(gram.double(), right.double()).float())
    whole = torch.stack(solutions)
    return CheapPaths(gate, up, whole[:, :-1].transpose(1, 2).contiguous(), whole[:, -1].contiguous())


def chunks(tokens: int) -> Iterator[slice]:
    """Yield slices of so many tokens, `CHUNK` each."""
    yield from (slice(at, at + CHUNK) for at in range(0, tokens, CHUNK))
