"""Trained routers on disk, with the held-out prompts that thresholds are set by, in the format of `trained_file`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.errors import LoadError
from adaptc.ir.stored.trained_file import load_trained, save_trained
from adaptc.runtime.model.router import METADATA as KEY

Array = npt.NDArray[np.float32]
PREDICTED, LOST = "held_out.predicted", "held_out.lost"


@dataclass(frozen=True, slots=True)
class RouterMetadata:
    """What a trained router is, and where it comes from.

    Attributes:
        routes: Names of the routes, in the order of its outputs.
        training: Data, seed, versions, quality: for readers.
    """

    routes: tuple[str, ...]
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class StoredRouter:
    """A router's file.

    Attributes:
        routes: Names of the routes, in the order of its outputs.
        predicted: Loss that the router predicts for each held-out prompt and route against the dearest route, nats a
            token: float32 [prompts, routes].
        lost: The measured loss; of the same shape.
    """

    routes: tuple[str, ...]
    predicted: Array
    lost: Array


def save_router(
    metadata: RouterMetadata, weights: Mapping[str, Array], predicted: Array, lost: Array, path: Path
) -> None:
    """Write a router; the file that was there stays until the new one is whole.

    Args:
        metadata: What it is.
        weights: w1, b1, w2, b2 as the runtime reads them, float32.
        predicted: As in `StoredRouter`.
        lost: As in `StoredRouter`.
        path: The file.
    """
    import torch

    arrays = {**weights, PREDICTED: predicted, LOST: lost}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in arrays.items()}
    save_trained(path, KEY, metadata, tensors)


def load_router(path: Path) -> StoredRouter:
    """Read a router.

    Raises:
        LoadError: the file is missing, damaged, or not a file of a router.
    """
    metadata, tensors = load_trained(path, KEY, RouterMetadata, "a router")
    missing = [name for name in (PREDICTED, LOST) if name not in tensors]
    if missing:
        raise LoadError(f"{path}: no tensor {missing[0]}; train again")
    predicted, lost = (tensors[name].astype(np.float32) for name in (PREDICTED, LOST))
    return StoredRouter(metadata.routes, predicted, lost)
