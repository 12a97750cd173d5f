"""How bytes of an image become numbers: the bundle's own reading of probe images beside the source's processor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from adaptc.errors import LoadError, RequestError, foreign
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.manifest import GraphSpec, ModalSpec
from adaptc.runtime.bundle.names import IMAGES, PIXEL_VALUES
from adaptc.runtime.loading import BACKENDS
from adaptc.runtime.multimodal.grid_images import GridImages
from adaptc.runtime.multimodal.images import Images, read_image_spec
from adaptc.runtime.multimodal.subsets import ModalGraphs
from adaptc.sources.base import Source
from adaptc.verification.outside import Place, place_of, quiet, version
from adaptc.verification.part import Part, judged, not_compared

if TYPE_CHECKING:
    from PIL.Image import Image

VALUES, SIZES = "image values", "image sizes"

NEAR = 1e-4
"""Largest difference of a pixel value, whose usual size is 1 to 3; one step of a byte is about 1e-2."""

_WHOLE = {"do_image_splitting": False}
_AS_IT_IS = {**_WHOLE, "do_resize": False, "do_center_crop": False, "do_pad": False}
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class AutoImages:
    """transformers' image processor of a source.

    Attributes:
        processor: As `AutoImageProcessor` gives it.
        name: What it is, with its version.
    """

    processor: Any
    name: str

    @classmethod
    def of(cls, place: Place) -> AutoImages:
        """Read it.

        Raises:
            LoadError: transformers has none for the source, or what it needs is not installed.
        """
        from transformers import AutoImageProcessor

        with foreign("transformers reads no image processor here"), quiet():
            processor = AutoImageProcessor.from_pretrained(place.folder, local_files_only=True, trust_remote_code=False)
        return cls(processor, f"AutoImageProcessor of {version()}")

    @property
    def cuts_tiles(self) -> bool:
        """Whether it makes several images of one."""
        return bool(getattr(self.processor, "do_image_splitting", False))

    def values(self, image: Image, options: Mapping[str, bool]) -> npt.NDArray[np.float32]:
        """Pixel values of an image: float32 [channels, height, width], or [patches, numbers of a patch].

        Args:
            image: Of any size and mode.
            options: What is left out, of those that the processor has.

        Raises:
            LoadError: it does not take the image.
        """
        own = {name: value for name, value in options.items() if hasattr(self.processor, name)}
        with foreign("the source's image processor takes no such image"), quiet():
            found = self.processor(images=[image], return_tensors="np", **own)[PIXEL_VALUES]
        values: npt.NDArray[np.float32] = np.asarray(found, np.float32)
        while values.ndim > 3 and len(values) == 1:
            values = values[0]
        return values


def image_parts(bundle: Bundle, source: Source) -> list[Part]:
    """Compare how a language model's bundle reads images; nothing for one that takes none.

    Args:
        bundle: An opened bundle.
        source: Its model.
    """
    found = [(modal, each) for modal in bundle.manifest.modal.values() for each in modal.modalities.values()]
    encoders = [(modal, bundle.manifest.graphs[each.encoder]) for modal, each in found if each.encoder]
    if not encoders:
        return []
    [(modal, encoder)] = encoders
    images = _reader(bundle, modal, encoder)
    if not images.spec.mean:
        return [not_compared(VALUES, "the bundle takes pixel values only, as the source states no mean of pixels")]
    place = place_of(source)
    if place is None or place.gguf is not None:
        return [not_compared(VALUES, "transformers reads no image processor of this kind of source")]
    try:
        reference = AutoImages.of(place)
        probes = list(_probes(images, encoder))
    except (LoadError, ImportError) as error:
        return [not_compared(VALUES, str(error))]
    return _parts(images, reference, probes)


def _parts(images: Images, reference: AutoImages, probes: list[Image]) -> list[Part]:
    values: list[str] = []
    sizes: list[str] = []
    taken, worst = 0, 0.0
    for probe in probes:
        called = f"an image of {probe.width} × {probe.height} ({probe.mode})"
        try:
            [picture] = images.read(np.asarray(probe))
        except RequestError:
            continue  # the runtime says what it needs
        taken += 1
        try:
            error = _error(picture.pixels, reference.values(probe, _AS_IT_IS))
            whole = _error(picture.pixels, reference.values(probe, _WHOLE))
        except LoadError as refusal:
            values.append(f"{called} is taken: {refusal}")
            continue
        worst = float(np.maximum(worst, error))
        if not error <= NEAR:
            values.append(f"{called} is off by {error:.2g}, at most {NEAR:g} may be")
        if not whole <= NEAR:
            sizes.append(f"{called} is taken as it is, the source's processor makes other pixels of it")
    if not taken:
        return [not_compared(VALUES, "the bundle takes none of the images that were tried", reference.name)]
    figures = {"images": taken, "refused": len(probes) - taken, "largest_error": worst}
    part = judged(VALUES, f"{reference.name}, without resizing and tiles", _few(values), figures)
    return [part, _sizes_part(reference, taken, sizes, any_size=images.spec.grid is not None)]


def _sizes_part(reference: AutoImages, taken: int, resized: list[str], *, any_size: bool) -> Part:
    """Whether the source's processor resizes what the bundle takes as it is; a few very small or large ones it may."""
    if resized and reference.cuts_tiles:
        return not_compared(
            SIZES, "the source's processor cuts images into tiles, the bundle takes one", reference.name
        )
    faults = [] if any_size and len(resized) < taken else _few(resized)
    return judged(SIZES, reference.name, faults, {"images": taken, "resized": len(resized)})


def _few(faults: list[str]) -> list[str]:
    rest = len(faults) - _SHOWN
    return faults if rest <= 0 else [*faults[:_SHOWN], f"{rest} more images are"]


def _error(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Largest difference; infinite for another number of values, or another shape of an image."""
    if expected.ndim == 2:
        found = found.reshape(-1, found.shape[-1])
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max())


def _reader(bundle: Bundle, modal: ModalSpec, encoder: GraphSpec) -> Images:
    """What reads a request's images; its graphs are never run."""
    spec = read_image_spec(bundle.read(IMAGES), str(bundle.path / IMAGES))
    name = next(name for name, each in modal.modalities.items() if each.encoder)
    backend = BACKENDS[bundle.manifest.target.backend]
    graphs = ModalGraphs(modal, lambda graph: backend.engine(bundle, graph), 0)
    return (Images if spec.grid is None else GridImages)(spec, name, graphs, encoder)


def _probes(images: Images, encoder: GraphSpec) -> Iterator[Image]:
    """Images of several sizes, shapes, modes and contents, always the same ones.

    Raises:
        ImportError: pillow is not installed.
    """
    from PIL import Image as pillow  # noqa: N813

    if (grid := images.spec.grid) is not None:
        side = grid.patch * grid.merge
        sizes = [(side * rows, side * columns) for rows, columns in ((1, 1), (4, 4), (2, 7), (9, 3), (16, 12))]
    else:
        height, width = (int(size) for size in encoder.inputs[0].shape[-2:])
        sizes = [(height, width)] * 3
    drawing = np.random.default_rng(20261129)
    for height, width in (*sizes, (sizes[0][0], sizes[0][1] + 1), (2 * sizes[0][0] + 1, sizes[0][1])):
        yield pillow.fromarray(drawing.integers(0, 256, (height, width, 3), np.uint8))
    height, width = sizes[1]
    ramp = np.linspace(0, 255, height * width * 3).reshape(height, width, 3).astype(np.uint8)
    yield from (pillow.fromarray(each) for each in (ramp, np.zeros_like(ramp), np.full_like(ramp, 255)))
    yield from (pillow.fromarray(ramp).convert(mode) for mode in ("L", "RGBA", "P", "1", "CMYK"))
