"""Images of requests: data URLs are read, and nothing is fetched or opened."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adaptc.runtime.server.protocol.errors import ApiError
from adaptc.runtime.server.protocol.images import read_images

SIZE = (4, 6)
SPEC = SimpleNamespace(mean=(0.5,), resample=3)
SESSION: Any = SimpleNamespace(images=SimpleNamespace(spec=SPEC, fitted=lambda h, w: SIZE))


def url_of(pixels: Any, kind: str = "PNG") -> str:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    [found] = read_images(SESSION, [url_of(pixels)])
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels)


def test_others_are_brought_to_it() -> None:
    large = np.full((40, 60, 3), 77, np.uint8)
    grey = np.full((9, 5), 200, np.uint8)
    found = read_images(SESSION, [url_of(large, "JPEG"), url_of(grey)])
    assert [each.shape for each in found] == [(*SIZE, 3)] * 2
    assert abs(found[0].astype(int) - 77).max() < 3
    assert (found[1] == 200).all()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "http://localhost/x.png",
            "image 0: no data URL; data:image/png;base64,... is needed: nothing is fetched or opened",
        ),
        ("file:///etc/passwd", "image 0: no data URL"),
        ("/etc/passwd", "image 0: no data URL"),
        ("data:text/html;base64,AAAA", "image 0: no data URL"),
        ("data:image/png;base64,???", "image 0: no base64 after the comma"),
        ("data:image/png;base64,AAAA", "image 0: damaged, or none of PNG, JPEG, WEBP, GIF, BMP"),
    ],
)
def test_anything_else_is_refused(url: str, said: str) -> None:
    with pytest.raises(ApiError) as refused:
        read_images(SESSION, [url])
    assert refused.value.status == 400
    assert refused.value.message.startswith(said)


def test_an_image_that_would_fill_the_memory_is_not_decoded() -> None:
    content = io.BytesIO()
    Image.new("1", (30000, 30000)).save(content, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    with pytest.raises(ApiError):
        read_images(SESSION, [url])
