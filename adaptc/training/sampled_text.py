"""Text drawn from the model itself, to train its gates on what it will be writing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from adaptc import runtime
from adaptc.runtime.progress import SILENT, Progress

if TYPE_CHECKING:
    import torch

    from adaptc.sources.base import Source

Ids = npt.NDArray[np.int64]
PROMPT = 16
"""Tokens of the given text that each drawn text begins with."""

TOP_P = 0.98
"""Probability of the likeliest tokens that are drawn from, together, at temperature 1."""


def sample(
    bundle: Path, text: Ids, tokens: int, *, window: int, seed: int, batch: int = 16, progress: Progress = SILENT
) -> Ids:
    """Draw texts that begin with pieces of a given one, at temperature 1.

    Args:
        bundle: The model, compiled without gates.
        text: int64 [at least 16]; pieces of 16 tokens are taken from it anywhere.
        tokens: How many to draw, at least.
        window: Tokens of each text, its beginning included.
        seed: Of everything drawn.
        batch: Texts drawn together.
        progress: Told of the tokens that are drawn.

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
                sampling=runtime.Sampling(temperature=1.0, top_p=TOP_P),
                seed=int(random.integers(1 << 31)),
            )
            texts = [[*prompt, *result.ids] for prompt, result in zip(prompts, results, strict=True)]
            drawn += [np.array(each, np.int64) for each in texts if len(each) == window]
            progress.step(min(len(drawn) * window, tokens), tokens)
    return np.concatenate(drawn)


def sample_by_torch(
    source: Source,
    text: Ids,
    tokens: int,
    *,
    window: int,
    seed: int,
    device: str,
    batch: int = 1024,
    progress: Progress = SILENT,
) -> Ids:
    """Draw such texts with torch: on a GPU a thousand texts at a time, a million tokens in well under a minute.

    Args:
        source: The model.
        text: As for `sample`.
        tokens: As for `sample`.
        window: As for `sample`.
        seed: As for `sample`.
        device: "cuda", or "cpu".
        batch: Texts drawn together.
        progress: Told of the tokens that are drawn.

    Returns:
        int64 [texts · window]: texts go on after an end token, as a conversation does.
    """
    import torch

    from adaptc.evaluation.reference import load_eager

    random = np.random.default_rng(seed)
    dice = torch.Generator(device).manual_seed(seed)
    model = load_eager(source, "bfloat16").to(device)
    drawn: list[Ids] = []
    while len(drawn) * batch * window < tokens:
        starts = random.integers(0, len(text) - PROMPT + 1, batch)
        ids = torch.from_numpy(np.stack([text[at : at + PROMPT] for at in starts])).to(device)
        step, past = ids, None
        with torch.inference_mode():
            while ids.shape[1] < window:
                out = model(step, past_key_values=past, use_cache=True, logits_to_keep=1)
                past, step = out.past_key_values, _drawn(out.logits[:, -1], dice)
                ids = torch.cat([ids, step], 1)
        drawn.append(ids.cpu().numpy())
        progress.step(min(len(drawn) * batch * window, tokens), tokens)
    return np.concatenate(drawn).reshape(-1)


def _drawn(logits: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    """Draw one token for each row, int64 [rows, 1], by nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751)."""
    import torch

    likely, places = logits.float().softmax(-1).sort(-1, descending=True)
    likely[likely.cumsum(-1) - likely > TOP_P] = 0.0
    return places.gather(-1, torch.multinomial(likely, 1, generator=dice))
