"""Text drawn from the model itself, to train its gates on what it will be writing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adaptc import runtime

Ids = npt.NDArray[np.int64]
PROMPT = 16
"""Tokens of the given text that each drawn text begins with."""


def sample(
    bundle: Path, text: Ids, tokens: int, *, window: int, seed: int, batch: int = 16, told: Callable[[int], None]
) -> Ids:
    """Draw texts that begin with pieces of a given one, at temperature 1.

    Args:
        bundle: The model, compiled without gates.
        text: int64 [at least 16]; pieces of 16 tokens are taken from it anywhere.
        tokens: How many to draw, at least.
        window: Tokens of each text, its beginning included.
        seed: Of everything drawn.
        batch: Texts drawn together.
        told: Called with the tokens drawn so far.

    Returns:
        int64 [texts · window]: texts that an end token cut short are left out.
    """
    random = np.random.default_rng(seed)
    drawn: list[Ids] = []
    with runtime.load(bundle, batch=batch) as session:
        while len(drawn) * window < tokens:
            starts = random.integers(0, len(text) - PROMPT + 1, batch)
            prompts = [text[at : at + PROMPT].tolist() for at in starts]
            results = session.generate(
                prompts,
                max_new_tokens=window - PROMPT,
                sampling=runtime.Sampling(temperature=1.0, top_p=0.98),
                seed=int(random.integers(1 << 31)),
            )
            texts = [[*prompt, *result.ids] for prompt, result in zip(prompts, results, strict=True)]
            drawn += [np.array(each, np.int64) for each in texts if len(each) == window]
            told(len(drawn) * window)
    return np.concatenate(drawn)
