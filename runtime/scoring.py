"""How likely a model thinks a text is: for perplexity, and to compare two ways of running one model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from adaptc.runtime.decoder import Decoder, Ids, Logits

_TOGETHER = 1 << 24  # logits in memory at once: 64 MiB of float32


def log_probabilities(decoder: Decoder, ids: Ids, step: bool) -> npt.NDArray[np.float32]:
    """The natural logarithm of each token's probability after those before it.

    Args:
        decoder: Its first row is used.
        ids: int64 [tokens], 1 to `max_tokens`.
        step: Read token by token through the graph as it runs when it writes, not in chunks.

    Returns:
        float32 [tokens - 1]: of all tokens but the first.
    """
    scores = np.empty(len(ids) - 1, np.float32)
    blocks = _stepwise(decoder, ids) if step else decoder.score(ids, max(1, _TOGETHER // decoder.spec.vocab_size))
    done = 0
    for logits in blocks:
        following = ids[done + 1 : done + 1 + len(logits)]
        scores[done : done + len(following)] = _log_softmax_at(logits[: len(following)], following)
        done += len(logits)
    return scores


def _stepwise(decoder: Decoder, ids: Ids) -> Iterator[Logits]:
    yield decoder.prefill(0, ids[:1])[None]
    for token in ids[1:-1].tolist():
        yield decoder.decode([token])


def _log_softmax_at(logits: Logits, ids: Ids) -> npt.NDArray[np.float32]:
    """Log softmax(logits)[row, ids[row]] for each row; `logits` is used as scratch space."""
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = logits[np.arange(len(ids)), ids]
    np.exp(logits, out=logits)
    scores: npt.NDArray[np.float32] = chosen - np.log(logits.sum(axis=-1))
    return scores
