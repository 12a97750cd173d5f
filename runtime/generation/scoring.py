"""Log-probabilities of a text: for perplexity, and to compare two ways of running one model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adaptc.runtime.model.budget import Skips
from adaptc.runtime.model.decoder import BatchDecoder, Ids, Logits
from adaptc.runtime.model.options import NO_OPTIONS, RequestOptions


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """How probable a text is, token by token.

    Attributes:
        values: float32 [tokens - 1]: natural logarithms of probabilities, of all tokens but the first after those
            before it.
        best: float32 [tokens - 1]: the same of the most likely token at each of these places.
        best_ids: int64 [tokens - 1]: these tokens.
        skips: Which gated blocks ran for the tokens that were read one by one, except the last; None if there are no
            gates or no token was read so.
        route: The route that computed them; None for a bundle without routes.
    """

    values: npt.NDArray[np.float32]
    best: npt.NDArray[np.float32]
    best_ids: Ids
    skips: Skips | None = None
    route: str | None = None


_MOST_LOGITS = 1 << 24  # logits in memory at once: 64 MiB of float32


def log_probabilities(decoder: BatchDecoder, ids: Ids, step: bool, options: RequestOptions = NO_OPTIONS) -> Scores:
    """The natural logarithm of each token's probability after those before it.

    Args:
        decoder: Its first slot is used.
        ids: int64 [tokens], 1 to `max_tokens`.
        step: Whether the text goes token by token through the graph as when it writes, not in chunks.
        options: How the text runs through the model; where blocks may be skipped it is read token by token.
    """
    scores, best = np.empty(len(ids) - 1, np.float32), np.empty(len(ids) - 1, np.float32)
    best_ids = np.empty(len(ids) - 1, np.int64)
    ran: list[bytes] = []
    step = step or not decoder.dense(options)
    at_once = max(1, _MOST_LOGITS // decoder.spec.vocab_size)
    blocks = _stepwise(decoder, ids, options, ran) if step else decoder.score(ids, at_once, options)
    done = 0
    for logits in blocks:
        following = ids[done + 1 : done + 1 + len(logits)]
        part = slice(done, done + len(following))
        best_ids[part] = logits[: len(following)].argmax(-1)
        scores[part], best[part] = _log_softmax_at(logits[: len(following)], following)
        done += len(logits)
    route = decoder.route(0)
    return Scores(scores, best, best_ids, decoder.skips(ran, route) if step else None, route)


def _stepwise(decoder: BatchDecoder, ids: Ids, options: RequestOptions, ran: list[bytes]) -> Iterator[Logits]:
    """Logits at each token but the last; `ran` receives which gated blocks ran."""
    yield decoder.start(0, ids[:1], options)[None]
    for token in ids[1:-1].tolist():
        yield decoder.decode([token])
        if (now := decoder.ran(0)) is not None:
            ran.append(now)


def _log_softmax_at(logits: Logits, ids: Ids) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Log softmax(logits)[i, ids[i]] for each position i, and its largest value; `logits` is used as scratch space."""
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = logits[np.arange(len(ids)), ids]
    np.exp(logits, out=logits)
    sums = np.log(logits.sum(axis=-1))
    scores: npt.NDArray[np.float32] = chosen - sums
    return scores, -sums
