"""How a model takes images, from its config, its tokenizer and its processor's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptc.errors import LoadError
from adaptc.families.base import MultimodalFamily
from adaptc.families.model import multimodal_of
from adaptc.runtime.multimodal.images import GridSpec, ImageSpec
from adaptc.sources.base import Source

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def image_spec(source: Source) -> ImageSpec | None:
    """Return what a bundle must know to put images into prompts; None for a model that reads text only.

    Raises:
        LoadError: the source cannot be read.
    """
    config = source.config()
    family = multimodal_of(config)
    if family is None:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(source.tokenizer_files()["tokenizer.json"].decode())
    before, after = ([tokenizer.token_to_id(name) for name in names] for names in family.around)
    settings = source.image_processor()
    scale, mean, std = _normalization(settings)
    return ImageSpec(
        token=config.image_token_id,
        before=tuple(each for each in before if each is not None),
        after=tuple(each for each in after if each is not None),
        scale=scale,
        mean=mean,
        std=std,
        grid=_grid(config.vision_config, settings, family) if family.any_size else None,
        whole=family.whole,
        mark=family.mark,
        written=_written(family, tokenizer, config.image_token_id),
        resample=int(settings.get("resample", family.resample)),
    )


def _written(family: MultimodalFamily, tokenizer: Tokenizer, token: int) -> str:
    """What a text has in the place of a family's mark; empty for one without.

    Raises:
        LoadError: the tokenizer lacks the mark or the image token.
    """
    if not family.mark:
        return ""
    name = tokenizer.id_to_token(token)
    if name is None or tokenizer.token_to_id(family.mark) is None:
        lacking = f"an image token of id {token}" if name is None else family.mark
        raise LoadError(f"tokenizer.json: no {lacking}, which {family.model_type} needs; fetch the model again")
    return family.written.format(name)


def _grid(encoder: Any, settings: dict[str, Any], family: MultimodalFamily) -> GridSpec:
    """How images of any size are cut up; sizes that settings leave out are those of transformers' processor."""
    size = settings.get("size") or {}
    return GridSpec(
        encoder.patch_size,
        encoder.temporal_patch_size,
        encoder.spatial_merge_size,
        window=0 if family.window is None else family.window(encoder),
        least_pixels=settings.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or 56 * 56,
        most_pixels=settings.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or 1280 * 28 * 28,
    )


def _normalization(settings: dict[str, Any]) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """Scale, mean and standard deviation; without means where the processor states none, or others, or cuts crops."""
    mean, std = settings.get("image_mean"), settings.get("image_std")
    crops = settings.get("do_pan_and_scan")
    if not settings.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    if not isinstance(mean, list) or not isinstance(std, list) or len(mean) != len(std) or crops:
        return 0.0, (), ()
    scale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    return float(scale), tuple(map(float, mean)), tuple(map(float, std))
