"""Log-probabilities of a text: for perplexity, and to compare two ways of running one model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

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


class Scoring:
    """Reads a text and gathers the natural logarithm of each token's probability after those before it.

    Attributes:
        alone: Whether it needs the decoder for itself: it reads token by token in the first slot, or by a route.
        scores: What it found, once `read` has come to its end.
    """

    def __init__(
        self, decoder: BatchDecoder, ids: Ids, options: RequestOptions = NO_OPTIONS, step: bool = False
    ) -> None:
        """Begin with nothing read.

        Args:
            decoder: Reads it.
            ids: int64 [tokens], 1 to `max_tokens`.
            options: How the text runs through the model; where blocks may be skipped it is read token by token.
            step: Whether the text goes token by token through the graph as when it writes, not in pieces.
        """
        self._decoder, self._ids, self._options = decoder, ids, replace(options, scored=True)
        self._step = step or not decoder.dense(options)
        self.alone = self._step or bool(decoder.routes)
        nothing = np.empty(0, np.float32)
        self.scores = Scores(nothing, nothing, np.empty(0, np.int64))

    def read(self, slot: int) -> Iterator[None]:
        """Read the text in a slot; each time the result is advanced, a piece of it.

        Raises:
            EngineError: the engine failed.
        """
        decoder, ids = self._decoder, self._ids
        values, best = np.empty(len(ids) - 1, np.float32), np.empty(len(ids) - 1, np.float32)
        best_ids = np.empty(len(ids) - 1, np.int64)
        ran: list[bytes] = []
        at_once = max(1, _MOST_LOGITS // decoder.spec.vocab_size)
        if self._step:
            blocks = _stepwise(decoder, ids, self._options, ran)
        else:
            blocks = decoder.score(ids, at_once, self._options, slot)
        done = 0
        for logits in blocks:
            following = ids[done + 1 : done + 1 + len(logits)]
            part = slice(done, done + len(following))
            best_ids[part] = logits[: len(following)].argmax(-1)
            values[part], best[part] = _log_softmax_at(logits[: len(following)], following)
            done += len(logits)
            yield
        route = decoder.route(slot)
        self.scores = Scores(values, best, best_ids, decoder.skips(ran, route) if self._step else None, route)


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
