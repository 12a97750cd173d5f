"""Chat templates that belong to a folder's processor: of models that take more than text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adaptc.errors import LoadError
from adaptc.sources.folder.files import read_object

_LEGACY = "chat_template.json"
_PROCESSOR = "processor_config.json"


def chosen_templates(origin: str, folder: Path, of_tokenizer: Any) -> Any:
    """Return the templates by which chats with a folder's model are rendered.

    A model that takes images is asked through its processor, whose own templates come before the tokenizer's, as they
    do for `AutoProcessor`. For a model of text alone they count where the tokenizer has none.

    Args:
        origin: The model's name in the spec, for errors.
        folder: The Hugging Face folder.
        of_tokenizer: `AutoTokenizer`'s: a text, texts by name, or None.

    Raises:
        LoadError: a file is not JSON or has no such text, or files say two things.
    """
    of_processor = _of_processor(origin, folder)
    takes_images = "vision_config" in read_object(origin, folder / "config.json")
    if of_processor is None or (of_tokenizer is not None and not takes_images):
        return of_tokenizer
    return of_processor


def _of_processor(origin: str, folder: Path) -> Any:
    """The processor's template or templates, where it has its own."""
    stated = read_object(origin, folder / _PROCESSOR).get("chat_template")
    if stated is not None:
        return stated
    legacy = read_object(origin, folder / _LEGACY)
    if not legacy:
        return None
    text = legacy.get("chat_template")
    if not isinstance(text, str):
        raise LoadError(f"{origin}: {_LEGACY} has no chat_template, a text; the file is damaged")
    if any((folder / "additional_chat_templates").glob("*.jinja")):
        raise LoadError(
            f"{origin}: {_LEGACY} beside additional_chat_templates/; transformers reads one or the other: "
            "chat_template.jinja in the place of the former is right"
        )
    return text
