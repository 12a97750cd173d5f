"""Images of any size, cut into patches (Qwen2-VL): each is encoded alone, and its places have rows and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, sqrt
from typing import Any

import numpy as np

from adaptc.runtime.backends.engine import Array
from adaptc.runtime.bundle.names import IMAGE_FEATURES, PIXEL_VALUES
from adaptc.runtime.errors import RequestError
from adaptc.runtime.model.inserts import Inserts
from adaptc.runtime.multimodal.images import GridSpec, Ids, Images, Picture, Pixels, finite
from adaptc.runtime.multimodal.subsets import key_of

_MOST_PIXELS = 1280 * 28 * 28
"""Pixels of an image that was fitted, if a model takes as many: what Qwen2-VL's own examples take for its largest."""


class GridImages(Images):
    """Inserts images of any size into prompts.

    An image is uint8 [height, width, channels] or float32 [channels, height, width], both sides multiples of what takes
    one place; or `pixel_values` and `image_grid_thw` by name, as the model's processor gives them.
    """

    @property
    def grid(self) -> GridSpec:
        """How images are cut up."""
        assert self.spec.grid is not None
        return self.spec.grid

    def fitted(self, height: int, width: int) -> tuple[int, int]:
        """See `Images.fitted`: multiples of what takes one place, as Qwen2VLImageProcessor's `smart_resize` finds them.

        An image has at most `_MOST_PIXELS`, where the processor's own limit is larger.
        """
        side, pixels = self.grid.patch * self.grid.merge, height * width
        most = min(self.grid.most_pixels or _MOST_PIXELS, _MOST_PIXELS)
        rows, columns = (round(size / side) for size in (height, width))
        if rows * columns * side * side > most:
            shrink = sqrt(pixels / most)
            rows, columns = (floor(size / shrink / side) for size in (height, width))
        elif rows * columns * side * side < self.grid.least_pixels:
            grow = sqrt(self.grid.least_pixels / pixels)
            rows, columns = (ceil(size * grow / side) for size in (height, width))
        return max(1, rows) * side, max(1, columns) * side

    def read(self, images: Any) -> list[Picture]:
        """See `Images.read`."""
        if isinstance(images, Mapping):
            return self._processed(images)
        array = None if isinstance(images, (list, tuple)) else np.asarray(images)
        if array is not None:
            images = array if array.ndim == 4 else [array]
        return [self._cut(index, np.asarray(image)) for index, image in enumerate(images)]

    def encode(self, ids: Ids, pictures: Sequence[Picture]) -> Inserts:
        """See `Images.encode`."""
        values = np.concatenate([self._features(each) for each in pictures])
        places = np.flatnonzero(ids == self.spec.token)
        return Inserts(places, values, positions(ids, self.spec.token, pictures))

    def _features(self, picture: Picture) -> Pixels:
        """float32 [places, width]."""
        names = [tensor.name for tensor in self._encoder.inputs]
        arrays: list[Array] = [picture.pixels, self._corners(picture)]
        if self.grid.window:
            arrays.append(windows(picture.rows, picture.places // picture.rows, self.grid.window))
        feeds = dict(zip(names, arrays, strict=True))
        key = key_of(self.modality, [array[None] for array in feeds.values()], 0)
        known = self.graphs.cache.get(key)
        if known is None:
            encoded = self.graphs.engine_run(str(self.graphs.modal.modalities[self.modality].encoder), feeds)
            known = (encoded[IMAGE_FEATURES],)
            self.graphs.cache.put(key, known)
        features: Pixels = known[0]
        return features

    def _corners(self, picture: Picture) -> Ids:
        """Row and column of each patch: int64 [places, patches of a place, 2]."""
        merge = self.grid.merge
        place = np.arange(picture.places)
        columns = picture.places // picture.rows
        inside = np.arange(merge * merge)
        row = place[:, None] // columns * merge + inside // merge
        column = place[:, None] % columns * merge + inside % merge
        return np.ascontiguousarray(np.stack([row, column], -1), np.int64)

    def _cut(self, index: int, image: Any) -> Picture:
        """An image's patches, those of a place one after another, as Qwen2VLImageProcessor orders them."""
        side = self.grid.patch * self.grid.merge
        channels = max(1, len(self.spec.mean)) if image.dtype == np.uint8 else 3
        sizes = image.shape[:2] if image.dtype == np.uint8 else image.shape[1:]
        if image.ndim != 3 or len(sizes) != 2 or not all(size and size % side == 0 for size in sizes):
            raise RequestError(
                f"images[{index}]: {image.dtype}{list(image.shape)}; a height and a width that {side} divides are "
                f"needed: uint8[height, width, {channels}], or float32[3, height, width] as its processor gives it"
            )
        pixels = self.pixels(index, image, (channels, *sizes))
        rows, columns = (size // side for size in sizes)
        merge, patch = self.grid.merge, self.grid.patch
        parts = pixels.reshape(channels, rows, merge, patch, columns, merge, patch).transpose(1, 4, 2, 5, 0, 3, 6)
        frames = np.repeat(parts[:, :, :, :, :, None], self.grid.frames, 5)  # [rows, columns, m, m, channels, t, p, p]
        return Picture(np.ascontiguousarray(frames.reshape(rows * columns, merge * merge, -1)), rows * columns, rows)

    def _processed(self, images: Mapping[str, Any]) -> list[Picture]:
        """The pictures of patches and grids as the model's processor gives them."""
        merge = self.grid.merge
        try:
            patches = finite(0, np.asarray(images[PIXEL_VALUES]))
            grids = np.asarray(images["image_grid_thw"])
        except KeyError as error:
            raise RequestError(f"images: no {error}; pixel_values and image_grid_thw are needed") from error
        size = int(self._encoder.inputs[0].shape[2])
        fits = grids.ndim == 2 and grids.shape[1] == 3 and not (grids[:, 1:] % merge).any() and (grids[:, 0] == 1).all()
        if not fits or patches.shape != (int(grids.prod(1).sum()), size):
            raise RequestError(
                f"images: pixel_values float32{list(patches.shape)} and image_grid_thw {grids.tolist()}; patches of "
                f"{size} numbers are needed, as many as the grids [1, rows, columns] have, by {merge} divisible"
            )
        parts = np.split(patches, np.cumsum(grids.prod(1))[:-1])
        return [
            Picture(np.ascontiguousarray(part.reshape(-1, merge * merge, size)), len(part) // merge**2, int(h) // merge)
            for part, (_, h, _) in zip(parts, grids, strict=True)
        ]


def windows(rows: int, columns: int, side: int) -> Ids:
    """Which places of an image each window has, as Qwen2.5-VL's encoder sees them: int64 [windows, side · side].

    Args:
        rows: Of the image's places.
        columns: Of them.
        side: Of a window, in places; where the image's edge cuts one off, it has -1.
    """
    down, across = -(-rows // side), -(-columns // side)
    whole = np.full((down * side, across * side), -1, np.int64)
    whole[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
    return np.ascontiguousarray(whole.reshape(down, side, across, side).swapaxes(1, 2).reshape(-1, side * side))


def positions(ids: Ids, token: int, pictures: Sequence[Picture]) -> Ids:
    """Where each token is in time, row and column: int64 [3, tokens], as Qwen2VLModel.get_rope_index.

    Args:
        ids: int64 [tokens], with a token for each place of an image.
        token: That token.
        pictures: The images, in order.
    """
    result = np.zeros((3, len(ids)), np.int64)
    left = iter(pictures)
    here, at = 0, 0
    while at < len(ids):
        if ids[at] != token:
            result[:, at] = here
            here, at = here + 1, at + 1
            continue
        picture = next(left)
        columns = picture.places // picture.rows
        place = np.arange(picture.places)
        result[:, at : at + picture.places] = here + np.stack([0 * place, place // columns, place % columns])
        here, at = here + max(picture.rows, columns), at + picture.places
    return result
