"""Images of a request: read, encoded by their own graph, and inserted into the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.bundle.manifest import GraphSpec, ModalSpec
from adaptc.runtime.bundle.names import IMAGE_FEATURES, PIXEL_VALUES
from adaptc.runtime.bundle.strict_json import dumps, loads
from adaptc.runtime.errors import BundleError, RequestError
from adaptc.runtime.model.inserts import Inserts
from adaptc.runtime.multimodal.subsets import ModalGraphs

Ids = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.float32]
Encode = Callable[[], Inserts]


@dataclass(frozen=True, slots=True)
class GridSpec:
    """How a model that takes images of any size cuts them up.

    Attributes:
        patch: Pixels of a patch's side.
        frames: How many frames a patch spans; an image is repeated so often.
        merge: Patches of the side of what takes one place in a prompt.
        window: Places of the side of the windows in which an encoder sees an image; 0 for one that sees it whole.
        least_pixels: What a smaller image is brought to.
        most_pixels: What a larger one is brought to; 0 if the model does not say.
    """

    patch: int
    frames: int
    merge: int
    window: int = 0
    least_pixels: int = 0
    most_pixels: int = 0


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """How a language model takes images.

    Attributes:
        token: The token id that stands in a prompt for an image, and for each place an image takes.
        before: Tokens that stand before an image's places.
        after: Tokens that stand after them.
        scale: What bytes are multiplied with.
        mean: Mean of each channel, taken off after scaling; empty if the model does not say how bytes become numbers.
        std: Standard deviation of each channel; what is left is divided by it.
        grid: How images of any size are cut up; None where they are of one size.
        whole: Whether all places of an image are read in one step, as they attend to each other.
        mark: What stands for an image in a text, where that is not the token; empty where it is.
        written: What is read in the place of a mark, with the token in it once.
        resample: By which of Pillow's filters an image is brought to another size; 3 is bicubic, 2 bilinear.
    """

    token: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    grid: GridSpec | None
    whole: bool = False
    mark: str = ""
    written: str = ""
    resample: int = 3

    def to_json(self) -> bytes:
        """The content of `images.json`."""
        return dumps(self).encode()


def read_image_spec(content: bytes, where: str) -> ImageSpec:
    """Read `images.json`.

    Raises:
        BundleError: it is damaged.
    """
    try:
        return loads(ImageSpec, content, defaults=True)
    except BundleError as error:
        raise BundleError(f"{where}: {error}; compile again") from error


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image as its encoder takes it.

    Attributes:
        pixels: float32 [channels, height, width], or patches [places, patches of a place, numbers of a patch].
        places: How many tokens it takes.
        rows: Rows of its places, where they have rows and columns; else 0.
    """

    pixels: Pixels
    places: int
    rows: int = 0


class Images:
    """Inserts images into prompts.

    Attributes:
        spec: How the model takes them.
        graphs: What encodes them; `graphs.ran` counts the runs, `graphs.loaded` names what was read from disk.
        modality: What the bundle calls them.
    """

    def __init__(self, spec: ImageSpec, modality: str, graphs: ModalGraphs, encoder: GraphSpec) -> None:
        """Load nothing yet.

        Args:
            spec: How the model takes images.
            modality: What the bundle calls them.
            graphs: Closed with the session.
            encoder: The encoder's graph.
        """
        self.spec = spec
        self.graphs = graphs
        self.modality = modality
        self._encoder = encoder

    @property
    def places(self) -> int:
        """Tokens an image of the one size takes."""
        return int(self._encoder.outputs[0].shape[1])

    def fitted(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that an image of any size must be brought to."""
        _, *sizes = (int(size) for size in self._encoder.inputs[0].shape[1:])
        return sizes[0], sizes[1]

    def written(self, text: str) -> str:
        """A text with images, as the model's processor writes it before tokens are read, with one token for each."""
        return text.replace(self.spec.mark, self.spec.written) if self.spec.mark else text

    def insert(self, ids: Ids, images: Any) -> tuple[Ids, Encode | None]:
        """Make room for a prompt's images.

        Args:
            ids: int64 [tokens], with an image token for each image, or for each place as a processor writes them.
            images: One or several, as the model's processor gives them: float32 [channels, height, width]; or uint8
                [height, width, channels] of the encoder's size. Or all that a processor gives, by name.

        Returns:
            The prompt, int64 [tokens], and what encodes the images when it is read; None if there is no image.

        Raises:
            RequestError: an image is of another kind or shape, or there are more or fewer of them than the prompt has
                room for.
        """
        pictures = self.read(images)
        count, total = len(pictures), sum(each.places for each in pictures)
        tokens = int((ids == self.spec.token).sum())
        if tokens == count != total:
            ids = self._widened(ids, pictures)
        elif tokens != total:
            raise RequestError(
                f"prompt: {tokens} image tokens (id {self.spec.token}) and {count} images; "
                f"one for each image is needed, or {total}"
            )
        return ids, partial(self.encode, ids, pictures) if count else None

    def close(self) -> None:
        """Free the encoder."""
        self.graphs.close()

    def encode(self, ids: Ids, pictures: Sequence[Picture]) -> Inserts:
        """Encode a prompt's images; those in the cache are not encoded again.

        Raises:
            EngineError: it fails.
        """
        name = self._encoder.inputs[0].name
        pixels = {name: np.stack([each.pixels for each in pictures])}
        features = self.graphs.features(self.modality, pixels)[IMAGE_FEATURES]
        places = np.flatnonzero(ids == self.spec.token)
        return Inserts(places, np.ascontiguousarray(features.reshape(len(places), -1)), whole=self.spec.whole)

    def read(self, images: Any) -> list[Picture]:
        """Check images and bring them into the encoder's form.

        Raises:
            RequestError: see `insert`.
        """
        if isinstance(images, Mapping):
            if not np.asarray(images.get("pixel_attention_mask", True)).all():
                raise RequestError("images: pixel_attention_mask leaves parts out; images without padding are needed")
            images = images.get(PIXEL_VALUES, ())
        shape = tuple(int(size) for size in self._encoder.inputs[0].shape[1:])
        array = None if isinstance(images, (list, tuple)) else np.asarray(images)
        if array is not None:
            # A processor's own [texts, images, channels, height, width] of one text, several images, or one of them.
            images = array[0] if array.ndim == 5 and len(array) == 1 else array if array.ndim == 4 else [array]
        return [
            Picture(self.pixels(index, np.asarray(image), shape), self.places) for index, image in enumerate(images)
        ]

    def pixels(self, index: int, image: npt.NDArray[Any], shape: tuple[int, ...]) -> Pixels:
        """One image as float32 of a shape, [channels, height, width].

        Raises:
            RequestError: it is of another kind or shape, or has values that are not finite.
        """
        channels, height, width = shape
        if image.dtype == np.uint8 and image.shape == (height, width, channels) and self.spec.mean:
            scaled = image.astype(np.float32) * np.float32(self.spec.scale)
            normal = (scaled - np.array(self.spec.mean, np.float32)) / np.array(self.spec.std, np.float32)
            return np.ascontiguousarray(normal.transpose(2, 0, 1), np.float32)
        if image.dtype.kind != "f" or image.shape != shape:
            bytes_ = f"uint8[{height}, {width}, {channels}]"
            form = f"float32[{channels}, {height}, {width}] as its processor gives it"
            needed = f"{bytes_}, or {form}" if self.spec.mean else form
            raise RequestError(f"images[{index}]: {image.dtype}{list(image.shape)}; {needed}, is needed")
        return finite(index, image)

    def _widened(self, ids: Ids, pictures: Sequence[Picture]) -> Ids:
        """A place for each of an image's features where there was one for the image."""
        left = iter(pictures)
        widened: list[int] = []
        for each in ids.tolist():
            if each == self.spec.token:
                places = next(left).places
                widened += [*self.spec.before, *[self.spec.token] * places, *self.spec.after]
            else:
                widened.append(each)
        return np.array(widened, np.int64)


def fit(image: Any, images: Images) -> npt.NDArray[np.uint8]:
    """An image in the size that a model takes: uint8 [height, width, 3].

    Args:
        image: Of Pillow's.
        images: The model's.
    """
    rows, columns = images.fitted(image.height, image.width)
    return np.asarray(image.convert("RGB").resize((columns, rows), images.spec.resample), np.uint8)


def finite(index: int, image: npt.NDArray[Any]) -> Pixels:
    """An image's numbers as float32.

    Raises:
        RequestError: one is not finite.
    """
    if not np.isfinite(image).all():
        raise RequestError(f"images[{index}]: has values that are not finite; is its file damaged?")
    return np.ascontiguousarray(image, np.float32)


def uses_images(
    modal: ModalSpec | None, images: Images | None, has_images: bool, modalities: Sequence[str] | None
) -> bool:
    """Whether a request's images are used.

    Args:
        modal: The model's modalities; None for a model that never had any but text.
        images: What puts images into prompts, if the bundle has it.
        has_images: Whether the request has images.
        modalities: The only modalities to use; None for all that the request has.

    Raises:
        RequestError: the bundle does not run on these modalities.
    """
    if images is None and has_images and modalities is None:
        raise RequestError("images: this bundle reads text only")
    known = ["text"] if modal is None else list(modal.modalities)
    image = images.modality if images is not None else None
    used = [name for name in known if name != image or has_images] if modalities is None else list(modalities)
    for name in used:
        if name not in known:
            raise RequestError(f"modalities: no {name!r}; there are: {', '.join(known)}")
    if image in used and not has_images:
        raise RequestError(f"modalities: {image}: the request has no images")
    subsets = [("text",)] if modal is None else [each.modalities for each in modal.subsets]
    if tuple(name for name in known if name in used) not in subsets:
        there = ", ".join("+".join(subset) for subset in subsets)
        raise RequestError(f"modalities: {'+'.join(used)} was not compiled; there are: {there}")
    return image in used
