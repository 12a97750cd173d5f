"""Logits on a GPU against what eager float32 says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adaptc.runtime.bundle.folder import Bundle
from tests.gpu.answers import infer_bundle
from tests.gpu.steps import check_bundle

pytestmark = pytest.mark.gpu

KL_DENSE, KL_MASKED = 1e-4, 1e-2
"""Nats in the mean, in half precision: 1.4e-6 dense and 4.2e-3 under a mask that ruins the model were the most seen
(docs/results/tensorrt-h200.md)."""


def test_smollm2_writes_what_eager_float32_writes(built: Callable[[str], Bundle], folder: Path) -> None:
    found = check_bundle(built("smollm2"), dict(np.load(folder / "smollm2-expected.npz")))
    assert found["conditional"]
    assert found["dense"]["same_tokens"] == 1
    assert found["dense"]["kl_mean"] < KL_DENSE
    assert found["free_running"]["same_tokens"] == 1
    masks = [found[name] for name in found if name.startswith("mask")]
    assert len(masks) == 4
    for mask in masks:
        for how in ("conditional", "forced"):
            assert mask[f"{how}_ran_right"] == 1
            assert mask[f"{how}_same"] == 1
            assert mask[f"{how}_kl"] < KL_MASKED
        assert mask["conditional_kl"] == pytest.approx(mask["forced_kl"], rel=1e-3)


def test_subsets_of_modalities_are_the_models(built: Callable[[str], Bundle], folder: Path) -> None:
    """Half precision: at most 2.9e-4 apart, of logits up to 0.45, was seen."""
    found = infer_bundle(built("views"), folder / "views-expected.npz")
    assert len(found) == 3
    for subset in found.values():
        assert subset["most_apart"] < 1e-2 * subset["largest"]
