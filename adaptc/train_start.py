"""Where training starts: cheap paths and gates fitted to what the dense model does, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import fx

from adaptc.graph import FxGraph
from adaptc.passes.gating import FfnBlock, parameters

Ids = npt.NDArray[np.int64]
ROWS = 4


def started(
    graph: FxGraph,
    ids: Ids,
    blocks: Sequence[FfnBlock],
    rank: int,
    warmup: int,
    seed: int,
    device: str,
    stage: Callable[[str], None],
) -> dict[str, torch.Tensor]:
    """Fitted parameters of gates and cheap paths, by name.

    Args:
        graph: A captured decoder.
        ids: int64 [sequences, tokens].
        blocks: Those that get a gate.
        rank: Of the cheap paths; 0 for none.
        warmup: Positions at the start of each sequence that are left out: the first carry huge activations.
        seed: Of what is drawn.
        device: What it is computed on; the graph's weights stay there.
        stage: Told what is being done.
    """
    stage("run the dense model")
    states, inputs, results, slopes = _seen(graph, ids, blocks, warmup, seed, device)
    weights: dict[str, torch.Tensor] = {}
    for place, block in enumerate(blocks):
        stage(f"fit {block.layer}")
        random = torch.Generator().manual_seed(seed + place)
        n, y = inputs[place], results[place]
        instead = torch.zeros_like(y)
        if rank:
            a, b, bias = cheap_path(n, y, rank, random)
            instead = F.silu(n @ a.T) @ b.T + bias
            weights |= {f"{block.layer}.skip.cheap.{leaf}": t for leaf, t in (("a", a), ("b", b), ("bias", bias))}
        loss = (slopes[place] * (instead - y)).sum(-1).square() / 2
        weight, bias = gate(states[place], loss)
        weights |= {f"{block.layer}.skip.gate.weight": weight, f"{block.layer}.skip.gate.bias": bias}
    for block in blocks:
        assert all(weights[name].shape == shape for name, shape in parameters(block, rank).items())
    return weights


def cheap_path(
    n: torch.Tensor, y: torch.Tensor, rank: int, random: torch.Generator, steps: int = 400
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """a, b, bias of silu(n aᵀ) bᵀ + bias, which is nearest to y.

    Args:
        n: float32 [tokens, width], what the block reads.
        y: float32 [tokens, width], what it gives.
        rank: Rows of a.
        random: Draws where a starts, and batches.
        steps: Of Adam; b and bias are then solved for.
    """
    width = n.shape[1]
    mean, scale = y.mean(0), float(y.std()) + 1e-12
    a = torch.randn(rank, width, generator=random).to(n.device) / (n.square().mean().sqrt() * width**0.5)
    a, b = a.requires_grad_(), torch.zeros(y.shape[1], rank, device=n.device, requires_grad=True)
    optimizer = torch.optim.Adam([a, b], lr=3e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        some = torch.randint(len(n), (min(1024, len(n)),), generator=random).to(n.device)
        with torch.enable_grad():
            loss = F.mse_loss(F.silu(n[some] @ a.T) @ b.T, (y[some] - mean) / scale)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
        optimizer.step()
    a = a.detach()
    inner = F.silu(n @ a.T)
    middle = inner.mean(0)
    centred = inner - middle
    gram = centred.T @ centred
    gram += torch.eye(rank, device=n.device) * (1e-3 * gram.diagonal().mean() + 1e-12)
    b = torch.linalg.solve(gram, centred.T @ (y - mean)).T
    return a, b.contiguous(), mean - b @ middle


def gate(x: torch.Tensor, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [width, 1] and bias [1] of a gate that says the logarithm of the loss to expect.

    Losses of single tokens are noisy and never negative, as those of an exponential distribution; its likelihood is
    what is maximized, which is a convex problem. Logits are in one unit, log nats, for all layers, so one threshold
    serves them all.

    Args:
        x: float32 [tokens, width], the state before attention.
        loss: float32 [tokens], what skipping costs each.
    """
    mean, spread = x.mean(0), x.std(0) + 1e-6
    known = (x - mean) / spread
    level = (loss.mean() + 1e-12).log()
    target = loss / level.exp()
    weight, bias = (torch.zeros(size, device=x.device, requires_grad=True) for size in (x.shape[1], 1))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def deviance() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            z = known @ weight + bias
            # As if it were known that logits vary by about 1 from token to token.
            prior = weight.square().sum() * x.shape[1] / (2 * len(x))
            value = (target * torch.exp(-z.clamp(min=-20)) + z).mean() + prior
            torch.autograd.backward(value)
        return value

    optimizer.step(deviance)  # type: ignore[no-untyped-call]
    slope = weight.detach() / spread
    return slope[:, None].contiguous(), level + bias.detach() - mean @ slope


def _seen(
    graph: FxGraph, ids: Ids, blocks: Sequence[FfnBlock], warmup: int, seed: int, device: str
) -> tuple[list[torch.Tensor], ...]:
    """States before attention, blocks' inputs and results, and gradients of a drawn text's log likelihood by results.

    Each is a list by block of float32 [tokens, width]; see `adaptc.passes.importance.ffn_importance`.
    """
    wanted = {node for block in blocks for node in (block.state, block.normed)}
    results = {block.result: place for place, block in enumerate(blocks)}
    random = torch.Generator(device).manual_seed(seed)
    module = graph.module.to(device)
    found: tuple[list[Any], ...] = tuple([[] for _ in blocks] for _ in range(4))

    class Walk(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in results:
                probe = torch.zeros_like(value, requires_grad=True)
                kept[n] = (value.detach(), probe)
                return value + probe
            if n in wanted:
                kept[n] = value.detach()
            return value

    for at in range(0, len(ids), ROWS):
        part = ids[at : at + ROWS]
        kept: dict[fx.Node, Any] = {}
        feeds = {
            "input_ids": torch.from_numpy(part).to(device),
            "position_ids": torch.arange(part.shape[1], device=device).expand(part.shape),
        }
        with torch.enable_grad():
            [logits] = Walk(module).run(*(feeds[name] for name in graph.inputs))
            logits = logits.float().flatten(0, 1)
            drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=random).flatten()
            torch.autograd.backward(F.cross_entropy(logits, drawn, reduction="sum"))
        for place, block in enumerate(blocks):
            value, probe = kept[block.result]
            for into, each in zip(found, (kept[block.state], kept[block.normed], value, probe.grad), strict=True):
                into[place].append(each[:, warmup:].flatten(0, 1).float())
    return tuple([torch.cat(parts) for parts in lists] for lists in found)
