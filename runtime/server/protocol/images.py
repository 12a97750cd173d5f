"""Images of a request: data URLs, and nothing that would have to be fetched or opened."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Any

from adaptc.runtime.generation.session import Session
from adaptc.runtime.multimodal.images import fit
from adaptc.runtime.server.protocol.errors import ApiError

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_MOST_PIXELS = 64 << 20


def read_images(session: Session, urls: Sequence[str]) -> list[Any]:
    """The images of a request as its model takes them: uint8 [height, width, channels] each.

    Args:
        session: Of a model that takes images.
        urls: Data URLs.

    Raises:
        ApiError: the model takes no images, or one is of another kind, damaged, or too large.
    """
    images = session.images
    if images is None:
        raise ApiError(400, "messages: an image, and this model reads text only", param="messages")
    if not images.spec.mean:
        raise ApiError(
            400, "messages: an image, and this bundle does not say how bytes become its numbers", param="messages"
        )
    return [_fitted(index, _content(index, url), images) for index, url in enumerate(urls)]


def _content(index: int, url: str) -> bytes:
    head, comma, content = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64") or not comma:
        raise ApiError(
            400,
            f"image {index}: no data URL; data:image/png;base64,... is needed: nothing is fetched or opened",
            code="invalid_image_url",
            param="messages",
        )
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"image {index}: no base64 after the comma", param="messages") from error


def _fitted(index: int, content: bytes, images: Any) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ApiError(
            501, "messages: Pillow is not installed here; pip install pillow installs what reads images"
        ) from error
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            width, height = image.size
            if width * height <= _MOST_PIXELS:
                return fit(image, images)
    except Exception as error:  # a decoder given a stranger's bytes raises all kinds of errors
        raise ApiError(
            400, f"image {index}: damaged, or none of {', '.join(_FORMATS)}", code="invalid_image", param="messages"
        ) from error
    raise ApiError(400, f"image {index}: {width} x {height}; at most {_MOST_PIXELS} pixels are right", param="messages")
