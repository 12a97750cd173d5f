"""Perplexity: how well a bundle, or the model it came from, predicts a text."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adaptc.compiler.cache import Cache, key_of
from adaptc.errors import AdaptcError, RequestError
from adaptc.evaluation.reference import Reference
from adaptc.evaluation.routes import has_router
from adaptc.evaluation.text import Ids, windows
from adaptc.runtime import load
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.model.budget import Skips
from adaptc.runtime.progress import SILENT, Progress
from adaptc.sources.base import Source

Score = Callable[[Ids], npt.NDArray[np.float32]]
"""int64 [tokens] -> natural log-probabilities float32 [tokens - 1], of all tokens but the first."""

WINDOW = 512
"""Tokens a model sees at once; perplexities of different windows cannot be compared."""


@dataclass(frozen=True, slots=True)
class Perplexity:
    """A perplexity and what it was measured on.

    Attributes:
        perplexity: exp of the mean negative log-likelihood of a token, from 1; compare it only within one
            tokenizer, text and window.
        tokens: Tokens that were predicted.
        ffn_skipped: Share of the feed-forward blocks that did not run, over the tokens after the warm-up; 0 to 1.
        bytes_not_read: Bytes of weights that were not read for it, a token after the warm-up, on average.
        routes: Share of the windows that went each way, where a router picked it.
    """

    perplexity: float
    tokens: int
    ffn_skipped: float = 0.0
    bytes_not_read: float = 0.0
    routes: Mapping[str, float] = field(default_factory=dict)


def perplexity(score: Score, ids: Ids, window: int = WINDOW, progress: Progress = SILENT) -> Perplexity:
    """Measure how well a model predicts a text.

    The text is cut into windows that do not overlap. A window's first token has nothing before it and is not
    predicted; every other token counts once.

    Args:
        score: The model.
        ids: int64 [tokens], at least 2.
        window: Tokens in a window, from 2.
        progress: Told after each window how many tokens of the text are done.

    Raises:
        RequestError: the text or the window is too short.
        AdaptcError: the model computed something that is not a probability.
    """
    if window < 2:
        raise RequestError(f"window: {window}; at least 2 tokens are needed, one to predict the next")
    if len(ids) < 2:
        raise RequestError(f"text: {len(ids)} tokens; at least 2 are needed, one to predict the next")
    total, count, done = 0.0, 0, 0
    progress.step(0, len(ids))
    for piece in windows(ids, window):
        scores = score(piece)
        assert scores.shape == (len(piece) - 1,)
        # Summed in float64: float32 loses digits over a long text.
        total += float(scores.sum(dtype=np.float64))
        count += len(scores)
        done += len(piece)
        progress.step(done, len(ids))
    mean = -total / count
    if not math.isfinite(mean) or mean < 0:
        raise AdaptcError(f"perplexity: mean log-likelihood is {-mean}; the model's numbers are broken")
    return Perplexity(math.exp(mean), count)


def bundle_perplexity(
    bundle: Bundle,
    ids: Ids,
    window: int = WINDOW,
    *,
    step: bool = False,
    budget: float | None = None,
    max_loss: float | None = None,
    route: str | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Perplexity:
    """Measure a bundle.

    Args:
        bundle: An opened bundle; its hashes are not looked at again.
        ids: As for `perplexity`.
        window: As for `perplexity`; at most the bundle's `max_tokens`.
        step: Token by token through the graph as it runs when it writes.
        budget: How much of the model runs, 0 to 1, where the bundle has gates; below 1 it goes token by token. None for
            dense, and for what a router was calibrated to.
        max_loss: In the place of a budget, see `Request`.
        route: Route of a stitched bundle; None lets its router pick one for each window, which it reads whole.
        threads: Threads of the engine; None for the physical cores.
        progress: As for `perplexity`.

    Raises:
        RequestError: as `perplexity`, or the window does not fit the bundle.
        AdaptcError: as `perplexity`, or the bundle cannot be run.
    """
    name = bundle.manifest.reader
    decoder = bundle.manifest.graphs[name].decoder
    skips: list[Skips] = []
    if decoder is not None and window > decoder.max_tokens:
        raise RequestError(f"window: {window} tokens; this bundle holds {decoder.max_tokens}: choose fewer")
    taken: Counter[str] = Counter()
    with load(bundle.path, threads=threads, batch=1, verify=False, budget=budget, max_loss=max_loss) as session:

        def score(piece: Ids) -> npt.NDArray[np.float32]:
            scores = session.score(piece, step=step, route=route)
            if route is None and has_router(bundle) and scores.route is not None:
                taken[scores.route] += 1
            skips.extend([scores.skips] if scores.skips is not None else [])
            return scores.values

        measured = perplexity(score, ids, window, progress)
    measured = replace(measured, routes={name: count / taken.total() for name, count in taken.items()})
    if not sum(len(each.ran) for each in skips):
        return measured
    whole = Skips(np.concatenate([each.ran for each in skips]), skips[0].blocks)
    skippable = np.array(bundle.manifest.graphs[name].skippable_bytes)
    return replace(measured, ffn_skipped=whole.share, bytes_not_read=float((~whole.ran @ skippable).mean()))


def dense_perplexity(
    source: Source,
    sha256: str,
    ids: Ids,
    window: int,
    cache: Cache,
    *,
    dtype: str = "float32",
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Perplexity:
    """The same measure of the source model, dequantized and run eagerly by torch; kept in the cache.

    Args:
        source: The model.
        sha256: Its hash.
        ids: As for `perplexity`.
        window: As for `perplexity`.
        cache: Where the result is kept.
        dtype: What the model computes in; see `reference.DTYPES`.
        threads: Threads of torch.
        progress: As for `perplexity`.

    Raises:
        LoadError: torch or transformers is missing, or the model cannot be read.
        RequestError: as `perplexity`.
    """

    def make(path: Path) -> None:
        model = Reference(source, dtype, threads)
        measured = perplexity(model.log_probabilities, ids, window, progress)
        path.write_text(json.dumps({"perplexity": measured.perplexity, "tokens": measured.tokens}))

    text = hashlib.sha256(np.ascontiguousarray(ids, np.int64).tobytes()).hexdigest()
    key = key_of("dense_perplexity", 1, sha256, text, window, dtype)
    content = json.loads(cache.use("dense_perplexity", key, make, Path.read_text))
    return Perplexity(content["perplexity"], content["tokens"])
