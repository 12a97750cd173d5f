"""Which chat templates a tokenizer's files bring, by name, as transformers reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptc.runtime.errors import BundleError

TEMPLATE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"
_MORE = "additional_chat_templates/"
_SUFFIX = ".jinja"

DEFAULT = "default"
TOOL_USE = "tool_use"


@dataclass(frozen=True, slots=True)
class TemplateText:
    """A chat template that is not compiled.

    Attributes:
        text: Jinja.
        where: The file that holds it.
    """

    text: str
    where: str


def is_template_file(name: str) -> bool:
    """Whether a file of a tokenizer's folder holds a chat template alone."""
    inner = name.removeprefix(_MORE)
    return name == TEMPLATE or (inner != name and inner.endswith(_SUFFIX) and "/" not in inner)


def template_file(name: str) -> str:
    """The file of a template in the tokenizer's folder."""
    return TEMPLATE if name == DEFAULT else f"{_MORE}{name}{_SUFFIX}"


def templates_of(files: Mapping[str, bytes], where: str) -> dict[str, TemplateText]:
    """Read the templates: those in files of their own where there are any, else those of tokenizer_config.json.

    Args:
        files: Files of a tokenizer's folder by name; only those that hold templates are read.
        where: The folder, for messages.

    Raises:
        BundleError: a file is not text, or tokenizer_config.json is not JSON or has templates of another form.
    """
    found = {}
    for name in files:
        if is_template_file(name):
            title = DEFAULT if name == TEMPLATE else name.removeprefix(_MORE).removesuffix(_SUFFIX)
            found[title] = TemplateText(text_of(files[name], f"{where}/{name}"), f"{where}/{name}")
    return found or _configured(config_of(files, where), f"{where}/{CONFIG}")


def config_of(files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """The content of tokenizer_config.json; empty where there is none.

    Raises:
        BundleError: it is not a JSON object.
    """
    if CONFIG not in files:
        return {}
    try:
        config = json.loads(text_of(files[CONFIG], f"{where}/{CONFIG}"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}/{CONFIG}: cannot read: {error}") from error
    if not isinstance(config, dict):
        raise BundleError(f"{where}/{CONFIG}: an object is needed")
    return config


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that templates know, by name: "bos_token" and all that tokenizer_config.json names."""
    named = {name: value for name, value in config.items() if name.endswith("_token")}
    more = config.get("extra_special_tokens")
    named |= more if isinstance(more, dict) else {}
    contents = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: content for name, content in contents.items() if isinstance(content, str)}


def _configured(config: Mapping[str, Any], where: str) -> dict[str, TemplateText]:
    """The templates that tokenizer_config.json holds: a text, or a list with a name for each."""
    given = config.get("chat_template")
    if given is None:
        return {}
    entries = [{"name": DEFAULT, "template": given}] if isinstance(given, str) else given
    try:
        found = {entry["name"]: entry["template"] for entry in entries}
    except (TypeError, KeyError):
        found = {"": None}
    if not all(isinstance(part, str) for pair in found.items() for part in pair):
        raise BundleError(f'{where}: chat_template: a text or a list of {{"name": ..., "template": ...}} is needed')
    return {name: TemplateText(text, where) for name, text in found.items()}


def text_of(content: bytes, where: str) -> str:
    """A file as text.

    Raises:
        BundleError: it is not UTF-8.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{where}: cannot read: byte {error.start} is not UTF-8") from error
