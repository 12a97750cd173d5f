"""Is a bundle what it should be: its files by their hashes, its numbers against the model it was compiled from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from adaptc.errors import BundleError
from adaptc.evaluation.parity import NEW_TOKENS, Logits, Model, Parity, compare, worst
from adaptc.evaluation.reference import Reference, source_of
from adaptc.evaluation.route_reference import Stitched
from adaptc.evaluation.text import Ids
from adaptc.runtime.backends.backend import DecoderOptions
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.loading import load_decoder, tokenizer_of
from adaptc.runtime.model.options import RequestOptions

Stage = Callable[[str], None]

PROMPTS = (
    "The capital of France is",
    "Water boils at a lower temperature on a mountain because",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "Once upon a time there was a lighthouse keeper who",
    "1, 2, 3, 5, 8, 13,",
    "Dear Anna,\n\nthank you for your letter. I am glad to hear that",
)


class BundleModel:
    """A bundle, seen as a `Model`: prompts go through the prefill path, `greedy` through the decode path."""

    def __init__(
        self, bundle: Bundle, threads: int | None = None, route: str | None = None, *, gated: bool = False
    ) -> None:
        """Load it; its hashes are not looked at.

        Args:
            bundle: An opened bundle.
            threads: Threads of the engine; None for the physical cores.
            route: Route of a stitched bundle.
            gated: Whether every block is run by the graph with gates, where there is one without them too.

        Raises:
            EngineError: the engine is not installed or refuses the graph.
        """
        if bundle.manifest.graphs[bundle.manifest.reader].decoder is None:
            raise BundleError(f"{bundle.path}: not a decoder; there is nothing to compare")
        self._decoder = load_decoder(bundle, DecoderOptions(threads=threads, budget=0.0 if gated else 1.0))
        self._options = RequestOptions(budget=1.0, route=route)
        self.max_tokens = self._decoder.spec.max_tokens

    def logits(self, ids: Ids) -> Logits:
        """See `Model`."""
        return np.concatenate([part.copy() for part in self._decoder.score(ids, len(ids), self._options)])

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """See `Model`."""
        logits = self._decoder.start(0, np.array(prompt, np.int64), self._options)
        ids = [int(logits.argmax())]
        while len(ids) < new_tokens:
            ids.append(int(self._decoder.decode(ids[-1:])[0].argmax()))
        return ids

    def close(self) -> None:
        """Free the engine and the cache."""
        self._decoder.close()


def prompts_of(bundle: Bundle) -> list[list[int]]:
    """`PROMPTS` as the bundle's token ids.

    Raises:
        BundleError: it has no tokenizer.
    """
    tokenizer = tokenizer_of(bundle)
    if tokenizer is None:
        raise BundleError(f"{bundle.path}: no tokenizer; the numbers cannot be compared")
    return [tokenizer.encode(prompt) for prompt in PROMPTS]


def parity_of(bundle: Bundle, base: Path, threads: int | None = None) -> Parity:
    """Compare a bundle with its source model, run by torch in float32.

    Args:
        bundle: An opened bundle of one model.
        base: The folder that paths in its spec start from.
        threads: Threads of both.

    Raises:
        LoadError: the source model is not there or has changed, or torch is missing.
        EngineError: the bundle cannot be run.
    """
    prompts = prompts_of(bundle)
    return _parity(bundle, None, Reference(source_of(bundle, base), "float32", threads), prompts, threads)


def routes_parity(
    bundle: Bundle, base: Path, routes: Sequence[str], threads: int | None = None, stage: Stage = lambda _: None
) -> dict[str, Parity]:
    """Compare routes of a stitched bundle with the layers and stitches they are made of, run by torch in float32.

    Args:
        bundle: An opened bundle.
        base: As for `parity_of`.
        routes: Which.
        threads: Threads of both.
        stage: Called with a text that says what is being done.

    Raises:
        LoadError: as `parity_of`.
        EngineError: as `parity_of`.
        RequestError: there is no such route.
    """
    prompts = prompts_of(bundle)
    reference = Stitched.of(bundle, base, threads, stage)
    parities = {}
    for route in routes:
        stage(f"route {route}")
        parities[route] = _parity(bundle, route, reference.route(route), prompts, threads)
    return parities


def _parity(
    bundle: Bundle, route: str | None, reference: Model, prompts: Sequence[Sequence[int]], threads: int | None
) -> Parity:
    twins = any(gates.dense for gates in bundle.manifest.gates.values())
    parities = []
    for gated in (False, True) if twins else (False,):
        model = BundleModel(bundle, threads, route, gated=gated)
        try:
            room = model.max_tokens - NEW_TOKENS
            if room < 1:
                raise BundleError(f"{bundle.path}: holds {model.max_tokens} tokens; too few to compare")
            parities.append(compare(model, reference, [prompt[:room] for prompt in prompts]))
        finally:
            model.close()
    return worst(parities)
