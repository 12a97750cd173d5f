"""Figures of an engine from its samples: medians, the best, and ratios between engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Turn = Mapping[str, Any]
"""What `peers.measure` returns."""

DISTURBED = 0.15
"""A sample during which others kept more than so many processors busy does not count, if there are others."""


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """How to measure.

    Attributes:
        threads: Threads of every engine.
        prompt_tokens: Tokens that are read before writing.
        new_tokens: Tokens that are written.
        long_tokens: Tokens of a second prompt that is only read; 0 leaves it out.
        rounds: Turns of each engine.
        samples: Answers in a turn, the warm-up aside.
    """

    threads: int
    prompt_tokens: int = 90
    new_tokens: int = 64
    long_tokens: int = 512
    rounds: int = 5
    samples: int = 3


def is_settled(turns: Sequence[Turn], settings: BenchSettings) -> bool:
    """Whether at least half of the samples that were asked for are undisturbed."""
    wanted = settings.rounds * settings.samples / 2
    kinds = ("samples", "long_samples") if settings.long_tokens else ("samples",)
    return all(len(undisturbed(turns, kind)) >= wanted for kind in kinds)


def undisturbed(turns: Sequence[Turn], kind: str) -> list[list[float]]:
    """The samples of all turns during which others did not use the machine, or one cannot know."""
    return [sample[:3] for turn in turns for sample in turn[kind] if (sample[3] or 0) <= DISTURBED]


def summary(turns: Sequence[Turn], settings: BenchSettings) -> dict[str, Any]:
    """One engine's figures: medians over the undisturbed samples of all turns, and the best sample.

    Returns:
        Tokens per second, seconds and bytes by name; `samples`: how many counted; `disturbed`: how many did not. If all
        were disturbed, all count.
    """
    every = [sample[:3] for turn in turns for sample in turn["samples"]]
    counted = undisturbed(turns, "samples") or every
    prefill, first, decode = zip(*counted, strict=True)
    written, read = settings.new_tokens - 1, settings.prompt_tokens
    figures: dict[str, Any] = {
        "decode_tokens_per_second": written / median(decode),
        "prefill_tokens_per_second": read / median(prefill),
        "time_to_first_token_seconds": median(first),
        "peak_rss_bytes": max(turn["peak_rss_bytes"] for turn in turns),
        "load_seconds": median(turn["load_seconds"] for turn in turns),
        "best": {
            "decode_tokens_per_second": written / min(decode),
            "prefill_tokens_per_second": read / min(prefill),
            "time_to_first_token_seconds": min(first),
        },
        "samples": len(counted),
        "disturbed": len(every) - len(undisturbed(turns, "samples")),
    }
    if settings.long_tokens:
        whole = [sample[:3] for turn in turns for sample in turn["long_samples"]]
        long = [sample[0] for sample in undisturbed(turns, "long_samples") or whole]
        figures[long_key(settings)] = settings.long_tokens / median(long)
        figures["best"][long_key(settings)] = settings.long_tokens / min(long)
    return figures


def long_key(settings: BenchSettings) -> str:
    """What the reading speed of the long prompt is called: `prefill_512_tokens_per_second`."""
    return f"prefill_{settings.long_tokens}_tokens_per_second"


def ratios(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """How many times as fast adaptc is as each peer: `decode_vs_NAME`, `prefill_vs_NAME`, `prefill_512_vs_NAME`.

    Of several routes it is the first; the others are compared with it as peers are.
    """
    first, own = next(iter(results.items()))
    ratio_of = {}
    for name, other in results.items():
        if name == first:
            continue
        for key, value in own.items():
            if key.endswith("_tokens_per_second"):
                ratio_of[f"{key.removesuffix('_tokens_per_second')}_vs_{name}"] = value / other[key]
    return ratio_of


def same_start(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens are the same before the first that differs."""
    pairs = zip(ours, theirs, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
