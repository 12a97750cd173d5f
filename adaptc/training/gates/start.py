"""Where training starts: cheap paths and gates fitted to what the dense model does, all layers by themselves.

    dense activations ──> cheap paths, all tokens alike ──> gates ──> cheap paths, for the tokens that
                                                                      gates let through ──> gates

A cheap path needs to be right only where its block is skipped. Fitting it anew for the tokens that a gate would skip
leaves a fifth less of what skipping costs: ×1.084 instead of ×1.100 of dense perplexity at 25 % (SmolLM2-135M, 224
neurons, 20 gates, held-out text; one H200, docs/results/smollm2-skip.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adaptc.ir.fx_graph import FxGraph
from adaptc.passes.skip_ffn.gating import FfnBlock, ffn_blocks, neurons, parameters
from adaptc.passes.skip_ffn.importance import ROWS, sensitivities
from adaptc.runtime.progress import Progress, counted
from adaptc.training.gates import cheap_paths
from adaptc.training.gates.cheap_paths import CheapPaths
from adaptc.training.text import Ids, Mask

SKIPPED = 0.3
"""Share of all blocks that cheap paths are fitted for a second time as if it were skipped."""

SOFT = 0.35
"""Nats over which a token's weight falls from counting to not counting, around the gates' threshold."""

LEAST = 0.02
"""Least weight of a token, also of those that no gate lets through: other budgets skip some of them too."""


@dataclass(frozen=True, slots=True)
class Start:
    """A fitted gate and cheap path of one block.

    Attributes:
        block: The block.
        weights: By name, see `adaptc.passes.skip_ffn.gating.parameters`.
    """

    block: FfnBlock
    weights: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Activations:
    """Activations and gradients of the dense model, by block: bfloat16 [blocks, tokens, width].

    Attributes:
        states: Normed states before attention.
        inputs: Inputs of the blocks.
        results: Results of the blocks.
        slopes: Gradients of a drawn text's log likelihood by results; see `importance.ffn_importance`.
    """

    states: torch.Tensor
    inputs: torch.Tensor
    results: torch.Tensor
    slopes: torch.Tensor

    def only(self, places: Sequence[int]) -> Activations:
        """Return those of some blocks; itself for all of them."""
        where = list(places)
        if where == list(range(len(self.states))):
            return self
        return Activations(self.states[where], self.inputs[where], self.results[where], self.slopes[where])


def started(
    graph: FxGraph,
    ids: Ids,
    counts: Mask,
    blocks: Sequence[FfnBlock],
    keep: int,
    rank: int,
    seed: int,
    device: str,
    progress: Progress,
) -> list[Start]:
    """Return fitted gates and cheap paths, for the blocks whose cheap paths lose least, in order.

    Args:
        graph: A captured decoder.
        ids: int64 [sequences, tokens].
        counts: bool [sequences, tokens], which tokens are fitted to: those where gates decide. A warm-up is left out of
            them: the first tokens carry huge activations.
        blocks: Those that may get a gate.
        keep: Number of blocks that get a gate.
        rank: Inner neurons of the cheap paths; 0 for none.
        seed: Seed of what is drawn.
        device: Device to compute on; the graph's weights stay there.
        progress: Told of stages and steps.
    """
    progress.stage("run the dense model")
    dense = _activations(graph, ids, counts, blocks, seed, device, progress)
    random = torch.Generator().manual_seed(seed)
    paths: CheapPaths | None = None
    if rank:
        progress.stage("fit cheap paths")
        own = [neurons(graph.module, block) for block in blocks]
        costs = cheap_paths.metric(dense.slopes)
        paths = cheap_paths.begun(dense.inputs, dense.results, costs, own, rank)
        paths = cheap_paths.fitted(paths, dense.inputs, dense.results, costs, random, progress=progress)
    losses = _losses(dense, paths)
    best = sorted(losses.mean(1).argsort(stable=True)[:keep].tolist())
    dense, losses = dense.only(best), losses[best]
    progress.stage("fit gates")
    gates = _gates(dense, losses)
    if paths is not None:
        progress.stage("fit cheap paths to what is skipped")
        weights = _counted(dense, gates, SKIPPED * len(ffn_blocks(graph)) / len(best))
        paths = paths.only(best)
        paths = cheap_paths.fitted(paths, dense.inputs, dense.results, costs[best], random, weights, progress)
        losses = _losses(dense, paths)
        progress.stage("fit gates to that")
        gates = _gates(dense, losses)
    starts = []
    for at, place in enumerate(best):
        stem = f"{blocks[place].layer}.skip"
        fitted = {} if paths is None else {f"{stem}.cheap.{leaf}": w for leaf, w in paths.weights(at).items()}
        fitted |= {f"{stem}.gate.weight": gates[at][0], f"{stem}.gate.bias": gates[at][1]}
        assert {name: tuple(each.shape) for name, each in fitted.items()} == parameters(blocks[place], rank)
        starts.append(Start(blocks[place], fitted))
    return starts


def _losses(dense: Activations, paths: CheapPaths | None) -> torch.Tensor:
    """Return what skipping costs each token, to second order: float32 [blocks, tokens], nats."""
    losses = []
    for block, (n, y, slopes) in enumerate(zip(dense.inputs, dense.results, dense.slopes, strict=True)):
        parts = []
        for part in cheap_paths.chunks(len(n)):
            instead = 0.0 if paths is None else paths.result(block, n[part].float())
            parts.append((slopes[part].float() * (instead - y[part].float())).sum(-1).square() / 2)
        losses.append(torch.cat(parts))
    return torch.stack(losses)


def _gates(dense: Activations, losses: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [gate(states.float(), loss) for states, loss in zip(dense.states, losses, strict=True)]


def _counted(dense: Activations, gates: Sequence[tuple[torch.Tensor, torch.Tensor]], share: float) -> torch.Tensor:
    """Return the weight of each token when gates skip this share of their blocks: float32 [blocks, tokens]."""
    logits = torch.stack([(x.float() @ w)[:, 0] + b for x, (w, b) in zip(dense.states, gates, strict=True)])
    # torch.quantile takes 16 million values at most; a smaller part of them is as good.
    some = logits.flatten()[:: max(1, logits.numel() // (1 << 20))]
    return torch.sigmoid((some.quantile(min(0.95, share)) - logits) / SOFT) + LEAST


def gate(x: torch.Tensor, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight [width, 1] and bias [1] of a gate whose logit is the logarithm of the loss to expect.

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


def _activations(
    graph: FxGraph, ids: Ids, counts: Mask, blocks: Sequence[FfnBlock], seed: int, device: str, progress: Progress
) -> Activations:
    kept = {node for block in blocks for node in (block.state, block.normed, block.result)}
    random = torch.Generator(device).manual_seed(seed)
    graph.module.to(device)
    shape = (len(blocks), int(counts.sum()), int(blocks[0].result.meta["val"].shape[-1]))
    # In place and in half the bits: 131 k tokens of 23 layers of SmolLM2 are 13 GB so, and twice 27 GB otherwise.
    states, inputs, results, slopes = (torch.empty(shape, dtype=torch.bfloat16, device=device) for _ in range(4))
    done = 0
    for at in counted(range(0, len(ids), ROWS), progress):
        where = torch.from_numpy(counts[at : at + ROWS]).to(device)
        values, gradients = sensitivities(graph, ids[at : at + ROWS], {block.result for block in blocks}, kept, random)
        end = done + int(where.sum())
        for place, block in enumerate(blocks):
            parts = (values[block.state], values[block.normed], values[block.result], gradients[block.result])
            for into, each in zip((states, inputs, results, slopes), parts, strict=True):
                into[place, done:end] = each[where]
        done = end
    return Activations(states, inputs, results, slopes)
