"""Trained stitches on disk: a safetensors file whose metadata is a card that says what they are and where from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from adaptc.errors import LoadError
from adaptc.runtime.bundle.replace import write_whole

if TYPE_CHECKING:
    import torch

CARD = "adaptc.stitches"


@dataclass(frozen=True, slots=True)
class StitchCard:
    """What trained stitches are, and where from.

    Attributes:
        models: sha256 of each model's files, by its name in the spec: stitches fit no other weights.
        routes: For each route, its slices as (model, first, last), the trunk first.
        quality: For each route, and for each model by itself, what was measured on held-out text.
        training: Data, steps, seed, loss curve, versions: for readers.
    """

    models: dict[str, str]
    routes: dict[str, tuple[tuple[str, int, int], ...]]
    quality: dict[str, dict[str, float]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def save_stitches(card: StitchCard, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write stitches in float16; the file that was there stays until the new one is whole."""
    import torch
    from safetensors.torch import save

    stored = {name: tensor.detach().cpu().contiguous().to(torch.float16) for name, tensor in weights.items()}
    write_whole(path, save(stored, metadata={CARD: json.dumps(asdict(card))}))


def load_stitches(path: Path) -> tuple[StitchCard, dict[str, torch.Tensor]]:
    """Read stitches and check that they are whole; float32.

    Raises:
        LoadError: the file is missing, damaged, or not a file of stitches; a weight is NaN or infinite.
    """
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(CARD)
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise LoadError(f"{path}: no such file; `adaptc train` makes one") from None
    except (OSError, SafetensorError) as error:
        raise LoadError(f"{path}: cannot be read ({error}); a file of `adaptc train` is right") from error
    if text is None:
        raise LoadError(f"{path}: no card of stitches in it; a file of `adaptc train` is right")
    try:
        card = TypeAdapter(StitchCard).validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        raise LoadError(f"{path}: card, {'.'.join(map(str, fault['loc']))}: {fault['msg']}; train again") from error
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise LoadError(f"{path}: {name} has NaN or infinite values; train again")
    return card, weights
