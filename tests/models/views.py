"""A tiny multimodal classifier, for all tests of modalities: a picture, words and a number of a sound."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import nn

from adaptc.capture.module import capture_module
from adaptc.ir.program import Program
from adaptc.runtime.bundle.plan import Run

MODALITIES = {"image": ("pixels",), "text": ("ids", "mask"), "sound": ("wave",)}
CLASSES = 3
Feeds = dict[str, npt.NDArray[Any]]


class Views(nn.Module):
    """Mid fusion: a token of each modality, a transformer layer, a head. A missing one is learned, or is no token."""

    def __init__(self, missing: str = "learned") -> None:
        super().__init__()
        self.how = missing
        self.image = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8))
        self.words = nn.Embedding(11, 8)
        self.sound = nn.Linear(5, 8)
        self.missing = nn.ParameterDict({name: nn.Parameter(torch.zeros(8)) for name in MODALITIES})
        self.layer = nn.TransformerEncoderLayer(8, 4, 12, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(
        self,
        pixels: torch.Tensor | None = None,
        ids: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        wave: torch.Tensor | None = None,
    ) -> torch.Tensor:
        given = {
            "image": None if pixels is None else self.image(pixels.float() / 255),
            "text": None if ids is None or mask is None else (self.words(ids) * mask[..., None]).sum(1),
            "sound": None if wave is None else torch.tanh(self.sound(wave)),
        }
        rows = next(x.shape[0] for x in given.values() if x is not None)
        if self.how == "learned":
            given = {name: self.missing[name].expand(rows, -1) if x is None else x for name, x in given.items()}
        tokens = torch.stack([x for x in given.values() if x is not None], 1)
        result: torch.Tensor = self.head(self.layer(tokens).mean(1))
        return result


@cache
def model(missing: str = "learned") -> Views:
    torch.manual_seed(0)
    built = Views(missing)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0, 0.4)
    return built.eval().requires_grad_(False)


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A factory, as `source: module:views.py:build` names it."""
    return Views(), {name: torch.from_numpy(array) for name, array in feeds(1).items()}


def feeds(rows: int, seed: int = 0) -> Feeds:
    random = np.random.default_rng(seed)
    return {
        "pixels": random.integers(0, 256, (rows, 1, 6, 6)).astype(np.uint8),
        "ids": random.integers(0, 11, (rows, 4)),
        "mask": (random.random((rows, 4)) < 0.7).astype(np.int64),
        "wave": random.normal(size=(rows, 5)).astype(np.float32),
    }


@cache
def program() -> Program:
    graph = capture_module(model(), {name: torch.from_numpy(array) for name, array in feeds(1).items()})
    return Program({"views": graph}, (Run("views"),))


def eager(given: Feeds, subset: tuple[str, ...], missing: str = "learned") -> npt.NDArray[np.float32]:
    """What the model itself says of a subset."""
    names = [each for name in subset for each in MODALITIES[name]]
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = model(missing)(**{n: torch.from_numpy(given[n]) for n in names}).numpy()
    return logits


def run(made: Program, given: Feeds, subset: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """What the program's graphs say of a subset, encoder by encoder."""
    modal = made.modal["views"]
    features: Feeds = {}
    for name in subset:
        spec = modal.modalities[name]
        inputs = {each: given[each] for each in spec.inputs}
        features |= made.graphs[spec.encoder].run(inputs) if spec.encoder is not None else inputs
    graph = next(each.graph for each in modal.subsets if each.modalities == subset)
    logits: npt.NDArray[np.float32] = made.graphs[graph].run(features)["logits"].astype(np.float32)
    return logits


def labelled(path: Path, rows: int = 96, seed: int = 3) -> Path:
    """Rows with the labels that the whole model gives them, a few of them wrong."""
    given: dict[str, Any] = dict(feeds(rows, seed))
    labels = eager(given, tuple(MODALITIES)).argmax(1)
    labels[::10] = (labels[::10] + 1) % CLASSES
    arrays: Any = given | {"labels": labels}
    np.savez(path, **arrays)
    return path


SPEC = """
version: 1
models:
  views: {source: "module:views.py:build", weights: views.safetensors}
passes:
  - drop_modality:
      modalities: {image: [pixels], text: [ids, mask], sound: [wave]}
target: {weights: fp32}
"""


def write(folder: Path) -> Path:
    """A spec, its factory and its weights; returns the spec's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "views.py").write_text(Path(__file__).read_text())
    save_file({n: t.clone() for n, t in model().state_dict().items()}, folder / "views.safetensors")
    (folder / "model.yaml").write_text(SPEC)
    return folder / "model.yaml"
