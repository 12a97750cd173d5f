"""The steps that bundles of several kinds have in common: text, the source model, and what the bundle predicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptc.errors import BundleError
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.loading import tokenizer_of
from adaptc.verification.bundle_model import EXACT, BundleModel, has_coded_experts
from adaptc.verification.parity import (
    ARITHMETIC,
    LOSS,
    LOWERING,
    NEW_TOKENS,
    Parity,
    ParityLimits,
    Passage,
    Predictions,
    compare,
    faults,
    worst,
)
from adaptc.verification.part import Part, judged, not_compared
from adaptc.verification.probes import PROMPTS
from adaptc.verification.rounded import WeightError, weight_faults

LONG, LONGEST = 300, 2048
"""Tokens of the long prompt: usually, and at most where a window of attention asks for more."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was compared, and how it came out.

    Attributes:
        parts: Every part, in the order in which it was compared.
        parity: How far the bundle as it runs is from its source, by route ("" for a bundle without routes).
    """

    parts: tuple[Part, ...]
    parity: Mapping[str, Parity]

    @property
    def faults(self) -> list[str]:
        """What is wrong, a phrase each."""
        return [f"{part.name}: {why}" for part in self.parts if part.verdict == "failed" for why in part.why]


def decoder_spec_of(bundle: Bundle) -> DecoderSpec:
    """What the bundle's decoder expects.

    Raises:
        BundleError: it is not a decoder, or holds too few tokens.
    """
    spec = bundle.manifest.graphs[bundle.manifest.reader].decoder
    if spec is None:
        raise BundleError(f"{bundle.path}: not a decoder; there is nothing to compare")
    if spec.max_tokens <= NEW_TOKENS:
        raise BundleError(f"{bundle.path}: holds {spec.max_tokens} tokens; too few to compare")
    return spec


def prompts_of(bundle: Bundle, tokenizer: Any = None, long: int = 0) -> list[list[int]]:
    """What bundle and source continue: drawn ids, and texts where there is a tokenizer.

    Args:
        bundle: No prompt leaves less than `NEW_TOKENS` of its room.
        tokenizer: Has `encode`; None for the bundle's own.
        long: Tokens of one more prompt of drawn ids; 0 for none.

    Raises:
        BundleError: it is not a decoder, or holds too few tokens.
    """
    spec = decoder_spec_of(bundle)
    tokenizer = tokenizer or tokenizer_of(bundle)
    drawn = np.random.default_rng(0).integers(0, spec.vocab_size, 48 + LONGEST).tolist()
    prompts = [drawn[:48]]
    if tokenizer is not None:
        prompts += [[int(each) for each in tokenizer.encode(prompt)] or drawn[:1] for prompt in PROMPTS]
    if long:
        prompts.append(drawn[48 : 48 + long])
    room = spec.max_tokens - NEW_TOKENS
    return [[min(each, spec.vocab_size - 1) for each in prompt[:room]] for prompt in prompts]


def long_prompt(config: Any, max_tokens: int) -> int:
    """Tokens of the long prompt: more than a window of attention holds, where the bundle can leave one."""
    window = getattr(config.get_text_config(), "sliding_window", None) or 0
    beyond = window + NEW_TOKENS if 0 < window < max_tokens else 0
    return min(max(LONG, beyond), LONGEST)


def window_parts(config: Any, max_tokens: int) -> list[Part]:
    """What is left out where a window of attention is wider than the longest prompt."""
    window = getattr(config.get_text_config(), "sliding_window", None) or 0
    if not LONGEST - NEW_TOKENS < window < max_tokens:
        return []
    return [not_compared("window", f"attention leaves its window after {window} tokens, {LONGEST} were read")]


def predictions(
    bundle: Bundle, samples: Sequence[Passage], threads: int | None, route: str | None = None, *, exact: bool
) -> list[list[Predictions]]:
    """What the bundle says to all samples: by its graph, and by that with gates where it has one more.

    Args:
        bundle: An opened bundle.
        samples: Texts.
        threads: Threads of the engine.
        route: Of a stitched bundle.
        exact: Whether arithmetic is float32, where the bundle's kernels would round activations.
    """
    twins = any(gates.dense for gates in bundle.manifest.gates.values())
    found = []
    for gated in (False, True) if twins else (False,):
        model = BundleModel(bundle, threads, route, gated=gated, exact=exact and is_exact(bundle))
        try:
            found.append([model.predictions(sample) for sample in samples])
        finally:
            model.close()
    return found


def is_exact(bundle: Bundle) -> bool:
    """Whether the bundle's graphs can be run in float32 arithmetic."""
    return bundle.manifest.target.backend in EXACT


def weights_part(errors: Sequence[WeightError], by: str, read_as: str, route: str = "") -> Part:
    """Judge the weights of a bundle."""
    held = [each for each in errors if each.bits]
    figures = {
        "tensors": len(held),
        "absent": [each.name for each in errors if not each.bits],
        "largest_error": max((each.error for each in held), default=0.0),
    }
    name = f"weights of route {route}" if route else "weights"
    return judged(name, by, weight_faults(errors, read_as), figures)


def numbers_part(name: str, reference: str, parity: Parity, limits: ParityLimits) -> Part:
    """Judge what a bundle predicts."""
    return judged(name, reference, faults(parity, limits), dataclasses.asdict(parity))


def number_parts(
    bundle: Bundle,
    by: str,
    shipped: Sequence[Sequence[Predictions]],
    exact: Sequence[Sequence[Predictions]],
    expected: Sequence[Predictions],
    rounded: Sequence[Predictions],
    route: str = "",
) -> tuple[list[Part], Parity]:
    """Judge lowering, the kernels' arithmetic, and what all of it costs.

    Args:
        bundle: An opened bundle.
        by: What the reference is.
        shipped: What the bundle predicts as it runs, by each of its graphs.
        exact: What it predicts in float32 arithmetic, by each.
        expected: What the reference predicts.
        rounded: What the reference predicts with the bundle's weights.
        route: Of a stitched bundle.

    Returns:
        The parts, and how far the bundle as it runs is from the reference.
    """
    weights, end = bundle.manifest.target.weights, f" of route {route}" if route else ""
    lowering = worst([compare(each, rounded) for each in exact])
    whole = worst([compare(each, expected) for each in shipped])
    parts = []
    if is_exact(bundle):
        # Kernels of experts have no form in float32 arithmetic.
        expected_of = ARITHMETIC[weights] if has_coded_experts(bundle) else LOWERING
        parts.append(numbers_part(f"lowering{end}", f"{by}, with the bundle's weights", lowering, expected_of))
        if (limits := ARITHMETIC.get(weights)) is not None:
            arithmetic = worst([compare(ours, theirs) for ours, theirs in zip(shipped, exact, strict=True)])
            parts.append(numbers_part(f"arithmetic{end}", "the same graphs in float32 arithmetic", arithmetic, limits))
    else:
        limits = LOSS[weights]
        parts.append(numbers_part(f"lowering{end}", f"{by}, with the bundle's weights", lowering, limits))
    return [*parts, numbers_part(f"loss{end}", by, whole, LOSS[weights])], whole
