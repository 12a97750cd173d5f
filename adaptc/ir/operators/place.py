"""One operator for an image between words, so that every graph says what it means.

Pretrained models compare token ids with an image token to find where an image's features go. Our graphs read the
places instead: without places nothing is put anywhere, a text may hold the token itself, and a part of a prompt can be
read by itself.
"""

from __future__ import annotations

import torch

from adaptc.runtime.bundle.names import IMAGE_FEATURES, IMAGE_PLACES

PATCHES = "patch_positions"
"""Input of a captured model that takes an image of any size: int64 [places, patches of a place, 2], row and column."""

WINDOWS = "patch_windows"
"""Input of one whose encoder sees windows: int64 [windows, places of a window], -1 where a window is cut off."""


@torch.library.custom_op("adaptc::place", mutates_args=())
def place(states: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Put values in the place of some of the states.

    Args:
        states: float [batch, tokens, width].
        places: int64 [places], indices among batch · tokens, each at most once; may be empty.
        values: float [..., width], as many rows as there are places.

    Returns:
        float [batch, tokens, width].
    """
    placed = states.clone()
    placed.view(-1, states.shape[-1])[places] = values.reshape(-1, states.shape[-1])
    return placed


@place.register_fake
def _(states: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(states)


def no_images() -> dict[str, torch.Tensor]:
    """What a graph that takes images is fed with a text alone, by input."""
    return {IMAGE_FEATURES: torch.zeros(0, 0), IMAGE_PLACES: torch.zeros(0, dtype=torch.int64)}
