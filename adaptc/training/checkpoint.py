"""A training that was killed goes on: weights, the optimizer's moments and the step, as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from adaptc.errors import EngineError, LoadError
from adaptc.ir.stored.disk import writing

Moments = tuple[torch.Tensor, torch.Tensor]
"""Adam's running means of a weight's gradient and of its square."""

KEY = "adaptc.training.2"
"""Key of the metadata in the header; its number changes when files of an earlier release no longer fit."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a training between two steps.

    Attributes:
        run: What must be the same for the training to go on: recipe, layers, text.
        step: Number of steps done.
        curve: (step, loss).
        weights: By name.
        moments: By the weights' names.
        buffers: What else the objective must have, by name.
    """

    run: Mapping[str, Any]
    step: int
    curve: tuple[tuple[int, float], ...]
    weights: Mapping[str, torch.Tensor]
    moments: Mapping[str, Moments]
    buffers: Mapping[str, torch.Tensor]


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint; the file that was there stays until the new one is whole.

    Raises:
        EngineError: no space, no permission.
    """
    tensors = {f"weight.{name}": weight for name, weight in checkpoint.weights.items()}
    for name, (first, second) in checkpoint.moments.items():
        tensors |= {f"first.{name}": first, f"second.{name}": second}
    tensors |= {f"buffer.{name}": buffer for name, buffer in checkpoint.buffers.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {"run": dict(checkpoint.run), "step": checkpoint.step, "curve": checkpoint.curve}
    half = path.with_name(f".{path.name}.part")
    try:
        with writing(half):
            save_file(tensors, half, metadata={KEY: json.dumps(about)})
        half.replace(path)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise EngineError(f"{path}: cannot write: {error.strerror or error}") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        LoadError: it is damaged, or no checkpoint.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        weights = {name.removeprefix("weight."): t for name, t in tensors.items() if name.startswith("weight.")}
        moments = {
            name: (tensors[f"first.{name}"], tensors[f"second.{name}"])
            for name in weights
            if f"first.{name}" in tensors
        }
        buffers = {name.removeprefix("buffer."): t for name, t in tensors.items() if name.startswith("buffer.")}
        curve = tuple((step, loss) for step, loss in about["curve"])
        return Checkpoint(about["run"], about["step"], curve, weights, moments, buffers)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise LoadError(f"{path}: cannot be read ({error}); --restart begins anew") from error
