"""How likely a model thinks a text is: for perplexity, and to compare two ways of running one model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.onnxruntime_cpu.decoder import Ids, Logits
from adaptc.runtime.model.budget import ANY, Skips, Wish
from adaptc.runtime.model.rows import Rows

_TOGETHER = 1 << 24  # logits in memory at once: 64 MiB of float32


def log_probabilities(
    decoder: Rows, ids: Ids, step: bool, wish: Wish = ANY
) -> tuple[npt.NDArray[np.float32], Skips | None]:
    """The natural logarithm of each token's probability after those before it.

    Args:
        decoder: Its first row is used.
        ids: int64 [tokens], 1 to `max_tokens`.
        step: Read token by token through the graph as it runs when it writes, not in chunks.
        wish: How much runs, and by which route; where blocks may be skipped the text is read token by token.

    Returns:
        float32 [tokens - 1], of all tokens but the first; and which gated blocks ran for the tokens that were read
        one by one, but for the last, None if there are no gates or no token was.
    """
    scores = np.empty(len(ids) - 1, np.float32)
    ran: list[bytes] = []
    step = step or not decoder.dense(wish)
    together = max(1, _TOGETHER // decoder.spec.vocab_size)
    blocks = _stepwise(decoder, ids, wish, ran) if step else decoder.score(ids, together, wish)
    done = 0
    for logits in blocks:
        following = ids[done + 1 : done + 1 + len(logits)]
        scores[done : done + len(following)] = _log_softmax_at(logits[: len(following)], following)
        done += len(logits)
    return scores, decoder.skips(ran, decoder.route(0)) if step else None


def _stepwise(decoder: Rows, ids: Ids, wish: Wish, ran: list[bytes]) -> Iterator[Logits]:
    """Logits at each token but the last; `ran` receives which gated blocks ran."""
    yield decoder.start(0, ids[:1], wish)[None]
    for token in ids[1:-1].tolist():
        yield decoder.decode([token])
        if (now := decoder.ran(0)) is not None:
            ran.append(now)


def _log_softmax_at(logits: Logits, ids: Ids) -> npt.NDArray[np.float32]:
    """Log softmax(logits)[row, ids[row]] for each row; `logits` is used as scratch space."""
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = logits[np.arange(len(ids)), ids]
    np.exp(logits, out=logits)
    scores: npt.NDArray[np.float32] = chosen - np.log(logits.sum(axis=-1))
    return scores
