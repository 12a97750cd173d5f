"""The modality gate: P(correct | subset) of each request, and the subset that is worth its price."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.engine import Array
from adaptc.runtime.multimodal.profile import ModalityGate, ModalProfile
from adaptc.runtime.multimodal.strategy import ModalityOption, batch_seconds

Floats = npt.NDArray[np.float64]


def gate_features(features: Mapping[str, Array], logits: Array) -> Floats:
    """The gate's inputs: the first subset's features, and how confident its outputs are.

    Args:
        features: By name, float[rows, ...]; features with several axes a row are averaged over all but the last.
        logits: float[rows, classes].

    Returns:
        float[rows, width]: features, probabilities, and their largest, the gap to the second, and entropy.
    """
    flat = [a.reshape(len(a), -1, a.shape[-1]).mean(1) if a.ndim > 2 else a for a in features.values()]
    p = softmax(logits)
    ordered = np.sort(p, 1)[:, ::-1]
    second = ordered[:, 1] if p.shape[1] > 1 else 0 * ordered[:, 0]
    entropy = -(p * np.log(p + 1e-12)).sum(1)
    odds = np.log(ordered[:, 0] + 1e-6) - np.log(1 - ordered[:, 0] + 1e-6)
    confidence = np.stack([ordered[:, 0], ordered[:, 0] - second, entropy, odds], 1)
    return np.concatenate([*flat, p, confidence], 1).astype(np.float64)


def softmax(logits: Array) -> Floats:
    """Probabilities, float64[rows, classes]."""
    raised = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    shares: Floats = raised / raised.sum(1, keepdims=True)
    return shares


def probabilities(gate: ModalityGate, reads: Floats) -> Floats:
    """P(correct) of each row with each subset, float64[rows, subsets]."""
    x = (reads - np.array(gate.mean)) * np.array(gate.scale)
    logits: Any = x @ np.array(gate.weights).T + np.array(gate.bias)
    result: Floats = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))
    return result


def choose_subsets(gate: ModalityGate, reads: Floats, price: float) -> npt.NDArray[np.int64]:
    """For each row, the index of the subset whose P(correct) - price · seconds is largest, int64[rows]."""
    best: npt.NDArray[np.int64] = np.argmax(probabilities(gate, reads) - price * np.array(gate.seconds), 1)
    return best


def modality_options(profile: ModalProfile) -> tuple[ModalityOption, ...]:
    """All ways to process a request: each subset, and the gate at each of its levels."""
    result = [
        ModalityOption("+".join(s.modalities), s.modalities, s.accuracy, batch_seconds(profile.batches, s.seconds))
        for s in profile.subsets
    ]
    gate = profile.gate
    if gate is None:
        return tuple(result)
    first = np.array(batch_seconds(profile.batches, profile.subset(gate.subsets[0]).seconds))
    for index, level in enumerate(gate.levels):
        seconds = first.copy()
        for subset, share in zip(gate.subsets[1:], level.shares[1:], strict=True):
            if share:
                seconds += expected_extra(profile, subset, gate.subsets[0], share)
        whole = tuple(dict.fromkeys(name for subset in gate.subsets for name in subset))
        result.append(ModalityOption(f"gate@{index}", whole, level.accuracy, tuple(map(float, seconds)), index))
    return tuple(result)


def expected_extra(profile: ModalProfile, subset: tuple[str, ...], first: tuple[str, ...], share: float) -> Floats:
    """The extra seconds of a batch of 1, 2, ... if a share of its rows continues with a larger subset."""
    known = [e for name, e in profile.encoders.items() if name in first and name in subset]
    own = np.array(batch_seconds(profile.batches, profile.subset(subset).seconds))
    for each in known:
        own = np.maximum(own - np.array(batch_seconds(profile.batches, each)), own * 0.02)
    sizes = np.arange(1, len(own) + 1)
    # Of a small batch most often no row continues; rows are taken as independent.
    some = 1 - (1 - share) ** sizes
    rows = np.maximum(1.0, sizes * share / some)
    extra: Floats = some * np.interp(rows, sizes, own)
    return extra
