"""Trained skip gates on disk, in the format of `trained_file`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from adaptc.errors import LoadError
from adaptc.ir.stored.trained_file import check_finite, load_trained, save_trained

if TYPE_CHECKING:
    import torch

KEY = "adaptc.gates"
SCALE = ".scale"
"""Suffix of the name of an int8 matrix's scales, one for each row."""


@dataclass(frozen=True, slots=True)
class GatesMetadata:
    """What trained gates are, and where they come from.

    Attributes:
        model: Where the model came from.
        sha256: Hash of the model's files: gates fit no other weights.
        layers: Indices of the layers with a gate, rising.
        blocks: Feed-forward blocks of the model.
        rank: Inner neurons of the cheap paths; 0 for none.
        warmup: Positions at the start of a sequence where every block runs.
        thresholds: (share of all blocks skipped, threshold) on held-out text, both rising.
        perplexity: (share of all blocks skipped, perplexity / that of the dense twin) on held-out text.
        training: Data, steps, seed, loss curve, versions: for readers.
        written: As `thresholds`, on held-out answers that the model wrote; empty if there were none.
        written_loss: (share of all blocks skipped, KL from the dense twin in nats a token) on these answers.
    """

    model: str
    sha256: str
    layers: tuple[int, ...]
    blocks: int
    rank: int
    warmup: int
    thresholds: tuple[tuple[float, float], ...]
    perplexity: tuple[tuple[float, float], ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    written: tuple[tuple[float, float], ...] = ()
    written_loss: tuple[tuple[float, float], ...] = ()


def save_gates(metadata: GatesMetadata, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write gates; the file that was there stays until the new one is whole.

    Matrices of cheap paths are stored in int8 with a scale for each row, as a target quantizes them further; gates,
    whose thresholds are exact, in float32.
    """
    import torch

    stored: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        value = weight.detach().cpu().float().contiguous()
        if ".cheap." in name and value.ndim == 2:
            scale = value.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            stored |= {name: (value / scale).round().to(torch.int8), f"{name}{SCALE}": scale}
        else:
            stored[name] = value
    save_trained(path, KEY, metadata, stored)


def load_gates_metadata(path: Path) -> GatesMetadata:
    """Read the metadata of a gates file.

    Raises:
        LoadError: as `load_gates`.
    """
    return load_gate_arrays(path)[0]


def load_gates(path: Path) -> tuple[GatesMetadata, dict[str, torch.Tensor]]:
    """Read gates and check that they are whole; float32.

    Raises:
        LoadError: as `load_gate_arrays`.
    """
    import torch

    metadata, arrays = load_gate_arrays(path)
    return metadata, {name: torch.from_numpy(array) for name, array in arrays.items()}


def load_gate_arrays(path: Path) -> tuple[GatesMetadata, dict[str, npt.NDArray[np.float32]]]:
    """Read gates and check that they are whole; float32. Needs no torch.

    Raises:
        LoadError: the file is missing, damaged, or not a file of gates; a weight is NaN or infinite.
    """
    metadata, stored = load_trained(path, KEY, GatesMetadata, "gates")
    tensors = {name: tensor.astype(np.float32) for name, tensor in stored.items()}
    scales = {name: tensors.pop(name) for name in [each for each in tensors if each.endswith(SCALE)]}
    for name in [each for each in tensors if f"{each}{SCALE}" in scales]:
        tensors[name] = tensors[name] * scales[f"{name}{SCALE}"]
    check_finite(path, tensors)
    for name, points in (("thresholds", metadata.thresholds), ("written", metadata.written)):
        levels = [level for _, level in points]
        if not all(map(math.isfinite, levels)) or levels != sorted(levels):
            raise LoadError(f"{path}: metadata: {name}: {levels}; rising finite numbers are right")
    return metadata, tensors
