"""Score a text by the FX graph while tokens skip blocks: what a bundle would give token by token, many times quicker.

Whether a token skips a block depends on that token's own state and on nothing later. So whole windows, with a threshold
for each token, give what steps of one token give; tests/evaluation/test_sweep.py holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from adaptc.errors import PassError
from adaptc.evaluation.text import Ids, windows
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.marks import path_of
from adaptc.ir.operators.skip import RUN
from adaptc.passes.skip_ffn import gating
from adaptc.runtime.bundle.names import INPUT_IDS, POSITION_IDS, THRESHOLD

Floats = npt.NDArray[np.float32]
Levels = Callable[[int, int], Floats]
"""(index of a window, its tokens) -> thresholds, float32 [tokens]."""

Said = Callable[[int, int], Floats]
"""(index of a window, its tokens) -> what gates say, float32 [gates, tokens]."""

_TOGETHER = 128  # tokens whose logits are normalized at once: 25 MB of float32 for 50 000 tokens


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """Which blocks tokens skip.

    Attributes:
        graph: With gates; or dense, where whole layers are dropped.
        levels: Thresholds of a window; the warm-up is taken care of.
        said: Takes the place of what the graph's gates say.
        dropped: Layers that give their input, attention and all, after the warm-up.
        about: How the rule was found, for readers.
    """

    graph: FxGraph
    levels: Levels
    said: Said | None = None
    dropped: tuple[int, ...] = ()
    about: str = ""


@dataclass(frozen=True, slots=True)
class Scored:
    """What a rule did to a text.

    Attributes:
        loss: Negative log-likelihood, in nats: summed over all predicted tokens, and over those predicted from a
            position after the warm-up.
        tokens: How many these are.
        skipped: Share of all feed-forward blocks not run, after the warm-up.
    """

    loss: tuple[float, float]
    tokens: tuple[int, int]
    skipped: float

    @property
    def means(self) -> tuple[float, float]:
        """Mean loss of a token, of all and after the warm-up; nats."""
        return self.loss[0] / self.tokens[0], self.loss[1] / max(1, self.tokens[1])


def constant(level: float) -> Levels:
    """The same threshold for every token."""
    return lambda _, tokens: np.full(tokens, level, np.float32)


def score(rule: Rule, ids: Ids, window: int, warmup: int, device: str = "cpu") -> Scored:
    """Score a text, window by window.

    Args:
        rule: Which blocks tokens skip.
        ids: int64 [tokens].
        window: Tokens in a window; they do not overlap.
        warmup: Positions at the start of each where every block runs.
        device: Device of torch.
    """
    blocks = len(gating.ffn_blocks(rule.graph))
    loss, tokens, skipped, places = [0.0, 0.0], [0, 0], 0.0, 0
    for index, piece in enumerate(windows(ids, window)):
        scores, ran = walk(rule, index, piece, warmup, device)
        # The token at position i is predicted from position i - 1.
        for at, part in enumerate((scores, scores[warmup:])):
            loss[at] -= float(part.sum(dtype=np.float64))
            tokens[at] += len(part)
        after = max(0, len(piece) - 1 - warmup)  # the last token predicts nothing
        skipped += float((~ran[:, warmup:-1]).sum()) + after * len(rule.dropped)
        places += after * blocks
    return Scored((loss[0], loss[1]), (tokens[0], tokens[1]), skipped / places if places else 0.0)


def walk(rule: Rule, index: int, ids: Ids, warmup: int, device: str = "cpu") -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Score one window.

    Args:
        rule: Which blocks tokens skip.
        index: Index of the window, for rules that draw.
        ids: int64 [tokens].
        warmup: Positions where every block runs.
        device: Device of torch.

    Returns:
        Natural log-probabilities of all tokens but the first, float32 [tokens - 1]; and which gated blocks ran, bool
        [gates, tokens].
    """
    tokens = len(ids)
    level = torch.from_numpy(rule.levels(index, tokens).astype(np.float32))[None].clone()
    level[:, :warmup] = RUN
    said = torch.from_numpy(rule.said(index, tokens)).to(device) if rule.said is not None else None
    walker = _GatedWalk(rule, said, level.to(device), warmup)
    feeds = {
        INPUT_IDS: torch.from_numpy(np.ascontiguousarray(ids))[None].to(device),
        POSITION_IDS: torch.arange(tokens, device=device)[None],
        THRESHOLD: walker.level,
    }
    with torch.no_grad():
        [logits] = walker.run(*(feeds[name] for name in rule.graph.inputs))
        following = feeds[INPUT_IDS][0, 1:, None]
        parts = []
        for at in range(0, tokens - 1, _TOGETHER):
            rows, targets = logits[0, at : min(at + _TOGETHER, tokens - 1)].float(), following[at : at + _TOGETHER]
            parts.append(rows.gather(1, targets)[:, 0] - rows.logsumexp(1))
    ran = torch.stack(walker.ran) if walker.ran else torch.ones((0, tokens), dtype=torch.bool)
    return torch.cat(parts).cpu().numpy(), ran.cpu().numpy()


class _GatedWalk(fx.Interpreter):
    """Runs a graph by a rule and notes which blocks ran."""

    def __init__(self, rule: Rule, said: torch.Tensor | None, level: torch.Tensor, warmup: int) -> None:
        super().__init__(rule.graph.module)
        self.level = level
        self.ran: list[torch.Tensor] = []
        self._said, self._warmup = said, warmup
        self._ends = {end: before for layer, (before, end) in enumerate(layers(rule.graph)) if layer in rule.dropped}
        self._inputs = dict.fromkeys(self._ends.values())

    def run_node(self, n: fx.Node) -> Any:
        if n.target is torch.ops.adaptc.skip.default:
            logit, level, full, cheap = (self.env[source] for source in n.all_input_nodes)
            if self._said is not None:
                logit = self._said[len(self.ran)][None]
            runs = (logit >= level).expand(level.shape)
            self.ran.append(runs[0])
            return torch.where(runs[..., None], full, cheap)
        value = super().run_node(n)
        if n in self._ends:
            kept = self._inputs[self._ends[n]]
            assert kept is not None
            value = torch.cat([value[:, : self._warmup], kept[:, self._warmup :]], 1)
        if n in self._inputs:
            self._inputs[n] = value
        return value


def layers(graph: FxGraph) -> list[tuple[fx.Node, fx.Node]]:
    """For each layer, the state it gets and the state it gives.

    Raises:
        PassError: a layer is not two residual sums one after the other.
    """
    pairs = []
    for block in gating.ffn_blocks(graph):
        end, middle = gating.residual(graph, block)
        inside = (block.layer, f"{block.layer}.")
        sources = [
            a for a in middle.all_input_nodes if path_of(a) != inside[0] and not path_of(a).startswith(inside[1])
        ]
        if len(sources) != 1:
            raise PassError(f"{block.layer}: attention's result goes into no residual sum with the layer's input")
        pairs.append((sources[0], end))
    return pairs
