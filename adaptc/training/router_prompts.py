"""Prompts for a router, each with what follows it, and what every route of a stitched program loses on that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)

from adaptc.ir.fx_graph import FxGraph
from adaptc.passes.stitch.plan import tail_name
from adaptc.passes.stitch.rules import TRUNK
from adaptc.passes.stitch.states import feeds
from adaptc.runtime.model.router import features
from adaptc.runtime.progress import SILENT, Progress
from adaptc.sources.chats import Chat
from adaptc.training.router import Prompts

TOGETHER = 1024
"""Most tokens, filler included, that are run at once; one text may have more."""

LEAST_ANSWER = 2
"""Tokens that an answer must have to say what a route loses on it: one, and its end."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptedText:
    """A prompt and what follows it.

    Attributes:
        ids: int64 [tokens].
        start: Where what follows begins, from 1.
    """

    ids: npt.NDArray[np.int64]
    start: int


def halves(rows: npt.NDArray[np.int64]) -> list[PromptedText]:
    """Return pieces of prose, int64 [pieces, tokens], whose first halves are the prompts."""
    return [PromptedText(row, rows.shape[1] // 2) for row in rows]


def answers(chats: Sequence[Chat], most: int, longest: int, seed: int = 0) -> list[PromptedText]:
    """Return chats up to an answer of theirs, and the answer: as a router meets them at run time.

    Args:
        chats: Chats; of each one answer is drawn, so that what is held out is drawn independently.
        most: How many, at most; which ones is drawn.
        longest: Tokens after which a text is cut; a chat whose answer begins behind that is left out.
        seed: Of what is drawn.
    """
    random = np.random.default_rng(seed)
    found: list[PromptedText] = []
    for place in random.permutation(len(chats)).tolist():
        start, end = chats[place].answers[int(random.integers(len(chats[place].answers)))]
        end = min(end, longest)
        if start > 0 and end - start >= LEAST_ANSWER:
            found.append(PromptedText(np.array(chats[place].ids[:end], np.int64), start))
        if len(found) == most:
            break
    return found


def observe(
    graphs: Mapping[str, FxGraph],
    costs: Mapping[str, float],
    texts: Sequence[PromptedText],
    progress: Progress = SILENT,
    device: str = "cpu",
) -> Prompts:
    """Run every route over every text and return what it loses on what follows the prompt.

    Args:
        graphs: A stitched program's, at FX level: `trunk` and `tail.ROUTE`.
        costs: By route.
        texts: At least one.
        progress: Told of stages and steps.
        device: "cpu" or "cuda".

    Returns:
        Features of each prompt, and the mean loss of a token of what follows, in the order of the texts.
    """
    seen: dict[int, npt.NDArray[np.float32]] = {}
    losses: dict[int, list[float]] = {}
    for graph in graphs.values():
        graph.module.to(device)
    progress.stage("run every route over prompts")
    progress.step(0, len(texts))
    for group in _groups(texts):
        rows = _padded([texts[each].ids for each in group], device)
        with torch.no_grad():
            [states] = graphs[TRUNK].module(*feeds(graphs[TRUNK], rows))
            for row, each in enumerate(group):
                seen[each] = features(states[row, : texts[each].start].float().cpu().numpy())
            for route in costs:
                tail = graphs[tail_name(route)]
                [logits] = tail.module(*feeds(tail, rows, states))
                for row, each in enumerate(group):
                    losses.setdefault(each, []).append(_lost(logits[row], rows[row], texts[each]))
        progress.step(len(seen), len(texts))
    lost = np.array([losses[each] for each in range(len(texts))])
    dearest = list(costs).index(max(costs, key=lambda route: costs[route]))
    every = np.stack([seen[each] for each in range(len(texts))])
    return Prompts(every, (lost - lost[:, dearest : dearest + 1]).astype(np.float32))


def _lost(logits: torch.Tensor, ids: torch.Tensor, text: PromptedText) -> float:
    """Mean loss of the tokens that follow a prompt, in nats."""
    end = len(text.ids)
    return float(F.cross_entropy(logits[text.start - 1 : end - 1].float(), ids[text.start : end]))


def _groups(texts: Sequence[PromptedText]) -> Iterator[list[int]]:
    """Places of texts of like lengths that are run together."""
    group: list[int] = []
    for each in sorted(range(len(texts)), key=lambda at: len(texts[at].ids)):
        if group and len(texts[each].ids) * (len(group) + 1) > TOGETHER:
            yield group
            group = []
        group.append(each)
    yield group


def _padded(rows: Sequence[npt.NDArray[np.int64]], device: str) -> torch.Tensor:
    """Rows of one length: what is behind a text's end is not seen from within it."""
    filled = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for into, row in zip(filled, rows, strict=True):
        into[: len(row)] = row
    return torch.from_numpy(filled).to(device)
