"""Trained gates on disk: a safetensors file whose metadata is a card that says what they are and where from."""

from __future__ import annotations

import json
import math
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

CARD = "adaptc.gates"
SCALE = ".scale"
"""Ends the name of what an int8 matrix of that name is multiplied with, row by row."""


@dataclass(frozen=True, slots=True)
class Card:
    """What trained gates are, and where from.

    Attributes:
        model: Where the model came from.
        sha256: Of the model's files: gates fit no other weights.
        layers: Indices of the layers with a gate, rising.
        blocks: Feed-forward blocks of the model.
        rank: Of the cheap paths; 0 for none.
        warmup: Positions at the start of a sequence where every block runs.
        thresholds: (share of all blocks skipped, threshold) on held-out text, both rising.
        perplexity: (share of all blocks skipped, perplexity / that of the dense twin) on held-out text.
        training: Data, steps, seed, loss curve, versions: for readers.
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


def save_gates(card: Card, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write gates; the file that was there stays until the new one is whole.

    Matrices of cheap paths are stored in int8 with a scale for each row, as a target quantizes them further; gates,
    whose thresholds are exact, in float32.
    """
    import torch
    from safetensors.torch import save

    stored: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        value = weight.detach().cpu().float().contiguous()
        if ".cheap." in name and value.ndim == 2:
            scale = value.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            stored |= {name: (value / scale).round().to(torch.int8), f"{name}{SCALE}": scale}
        else:
            stored[name] = value
    write_whole(path, save(stored, metadata={CARD: json.dumps(asdict(card))}))


def load_card(path: Path) -> Card:
    """The card of a gates file.

    Raises:
        LoadError: as `load_gates`.
    """
    return _read(path, weights=False)[0]


def load_gates(path: Path) -> tuple[Card, dict[str, torch.Tensor]]:
    """Read gates and check that they are whole; float32.

    Raises:
        LoadError: the file is missing, damaged, or not a file of gates; a weight is NaN or infinite.
    """
    return _read(path, weights=True)


def _read(path: Path, *, weights: bool) -> tuple[Card, dict[str, torch.Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(CARD)
            tensors = {name: file.get_tensor(name).float() for name in file.keys()} if weights else {}  # noqa: SIM118
    except FileNotFoundError:
        raise LoadError(f"{path}: no such file; `adaptc train` makes one") from None
    except (OSError, SafetensorError) as error:
        raise LoadError(f"{path}: cannot be read ({error}); a gates file of `adaptc train` is right") from error
    if text is None:
        raise LoadError(f"{path}: no card of gates in it; a file of `adaptc train` is right")
    try:
        card = TypeAdapter(Card).validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        raise LoadError(f"{path}: card, {'.'.join(map(str, fault['loc']))}: {fault['msg']}; train again") from error
    scales = {name: tensors.pop(name) for name in [each for each in tensors if each.endswith(SCALE)]}
    for name in [each for each in tensors if f"{each}{SCALE}" in scales]:
        tensors[name] = tensors[name] * scales[f"{name}{SCALE}"]
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise LoadError(f"{path}: {name} has NaN or infinite values; train again")
    levels = [level for _, level in card.thresholds]
    if not all(map(math.isfinite, levels)) or levels != sorted(levels):
        raise LoadError(f"{path}: card, thresholds: {levels}; rising finite numbers are right")
    return card, tensors
