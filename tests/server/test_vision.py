"""A language model that takes images, over HTTP: a data URL does what its pixels do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra compile is not installed here")

from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.runtime.server.endpoints.parts import ServerParts
from adaptc.runtime.server.serving.models import load_model
from adaptc.spec.reading import read_spec
from tests.models import vlm
from tests.server.served import ask, error_of, parts_of
from tests.server.test_images import url_of

CHAT = "/v1/chat/completions"
TEMPLATE = (
    "{% for m in messages %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerParts]:
    """A tiny model that takes images of one size, and one that takes any."""
    folder = tmp_path_factory.mktemp(request.param)
    vlm.write(folder, request.param)
    compile_spec(read_spec(folder / "model.yaml"), folder, folder / "bundle", Cache(folder / "cache"))
    parts = parts_of(load_model(folder / "bundle", "eyes", threads=1), templates=True)
    yield parts
    parts.models.close()


def body(*images: Any, **more: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url_of(each)}} for each in images]
    content = [*parts, {"type": "text", "text": "the cat"}]
    asked = {"messages": [{"role": "user", "content": content}], "chat_template": TEMPLATE, "temperature": 0}
    return {**asked, "max_tokens": 6, **more}


def test_a_data_url_does_what_its_pixels_do(server: ServerParts) -> None:
    session = server.models.text("eyes")[0].session
    assert session.images is not None
    size = session.images.fitted(8, 8)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "the cat"}]}]
    solo = session.chat(messages, template={"chat_template": TEMPLATE}, images=[pixels], max_tokens=6)
    answer = ask(server, CHAT, body(pixels)).json()
    assert answer["choices"][0]["message"]["content"] == solo.text
    assert answer["usage"]["prompt_tokens"] == solo.prompt_tokens
    dark = ask(server, CHAT, body(np.zeros_like(pixels))).json()
    assert dark["choices"][0]["message"]["content"] != solo.text


def test_images_of_other_sizes_are_brought_to_the_right_one(server: ServerParts) -> None:
    large = np.full((9, 14, 3), 90, np.uint8)
    answer = ask(server, CHAT, body(large, large))
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] > 0


def test_an_image_may_be_left_out(server: ServerParts) -> None:
    answer = ask(server, CHAT, body(np.zeros((8, 8, 3), np.uint8), adaptc={"modalities": ["text"]}))
    assert answer.status_code == 200, answer.text
    unknown = ask(server, CHAT, body(np.zeros((8, 8, 3), np.uint8), adaptc={"modalities": ["sound"]}))
    assert error_of(unknown)["message"].startswith("modalities: no 'sound'; there are: image, text")
