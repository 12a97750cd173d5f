"""A classifier of handwritten digits from six views of each: pixels, and five kinds of measured features.

The pixels go through a small convolutional network, each set of features through one layer. A view that is missing is
a learned vector, so the model is trained with views left out at random.
"""

from __future__ import annotations

import torch
from torch import nn

VIEWS = {"fou": 76, "kar": 64, "fac": 216, "mor": 6, "zer": 47, "pix": 240}
"""Fourier and Karhunen-Loève coefficients, profile correlations, morphology, Zernike moments, 15 x 16 pixels."""
WIDTH = 32
CLASSES = 10


class Pixels(nn.Module):
    """15 x 16 grey values, 0 to 6."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 8, WIDTH),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers((x / 6).unflatten(1, (1, 15, 16)))


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.ParameterDict({name: nn.Parameter(torch.zeros(size)) for name, size in VIEWS.items()})
        self.scale = nn.ParameterDict({name: nn.Parameter(torch.ones(size)) for name, size in VIEWS.items()})
        self.encoders = nn.ModuleDict(
            {n: nn.Sequential(nn.Linear(size, WIDTH), nn.Tanh()) for n, size in VIEWS.items() if n != "pix"}
        )
        self.encoders["pix"] = Pixels()
        self.missing = nn.ParameterDict({name: nn.Parameter(torch.zeros(WIDTH)) for name in VIEWS})
        self.head = nn.Sequential(nn.Linear(WIDTH * len(VIEWS), 128), nn.ReLU(), nn.Linear(128, CLASSES))

    def encode(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.encoders[name](x if name == "pix" else (x - self.mean[name]) * self.scale[name])

    def forward(
        self,
        fou: torch.Tensor | None = None,
        kar: torch.Tensor | None = None,
        fac: torch.Tensor | None = None,
        mor: torch.Tensor | None = None,
        zer: torch.Tensor | None = None,
        pix: torch.Tensor | None = None,
    ) -> torch.Tensor:
        given = {"fou": fou, "kar": kar, "fac": fac, "mor": mor, "zer": zer, "pix": pix}
        rows = next(x.shape[0] for x in given.values() if x is not None)
        parts = [self.missing[n].expand(rows, -1) if x is None else self.encode(n, x) for n, x in given.items()]
        return self.head(torch.cat(parts, 1))


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """What adaptc calls: the model without its weights, and an example of each input."""
    return Digits(), {name: torch.zeros(1, size) for name, size in VIEWS.items()}
