"""Trained stitches on disk; see `trained_file`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptc.ir.stored.trained_file import check_finite, load_trained, save_trained

if TYPE_CHECKING:
    import torch

KEY = "adaptc.stitches"


@dataclass(frozen=True, slots=True)
class StitchMetadata:
    """What trained stitches are, and where they come from.

    Attributes:
        models: sha256 of each model's files, by its name in the spec: stitches fit no other weights.
        routes: For each route, its runs of layers as (model, first, end), the trunk first.
        quality: For each route, and for each model by itself, what was measured on held-out text.
        training: Data, steps, seed, loss curve, versions: for readers.
    """

    models: dict[str, str]
    routes: dict[str, tuple[tuple[str, int, int], ...]]
    quality: dict[str, dict[str, float]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def save_stitches(metadata: StitchMetadata, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write stitches in float16; the file that was there stays until the new one is whole."""
    import torch

    stored = {name: tensor.detach().cpu().contiguous().to(torch.float16) for name, tensor in weights.items()}
    save_trained(path, KEY, metadata, stored)


def load_stitches(path: Path) -> tuple[StitchMetadata, dict[str, torch.Tensor]]:
    """Read stitches and check that they are whole; float32.

    Raises:
        LoadError: the file is missing, damaged, or not a file of stitches; a weight is NaN or infinite.
    """
    import torch

    metadata, stored = load_trained(path, KEY, StitchMetadata, "stitches")
    weights = {name: array.astype(np.float32) for name, array in stored.items()}
    check_finite(path, weights)
    return metadata, {name: torch.from_numpy(array) for name, array in weights.items()}
