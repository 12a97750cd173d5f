"""Chat templates by name, as the files of a bundle, and what keeps one from being used."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from adaptc.errors import LoadError
from adaptc.runtime.errors import BundleError
from adaptc.runtime.text.template_files import DEFAULT, template_file, templates_of
from adaptc.runtime.text.templates import ChatTemplate

_NAME = re.compile(r"[\w-][\w.-]*")


def template_files(origin: str, templates: object) -> dict[str, bytes]:
    """Return the files of one chat template, or of several by name.

    Args:
        origin: The model's name in the spec, for errors.
        templates: A text, a mapping from names to texts, or None.

    Raises:
        LoadError: they are of another form, or a name cannot be a file's.
    """
    named = templates if isinstance(templates, dict) else {DEFAULT: templates} if templates is not None else {}
    files = {}
    for name, text in named.items():
        if not isinstance(text, str) or not isinstance(name, str) or not _NAME.fullmatch(name):
            raise LoadError(f"{origin}: chat template {name!r} is {type(text).__name__}; a named text is right")
        try:
            files[template_file(name)] = text.encode()
        except UnicodeEncodeError as error:
            raise LoadError(f"{origin}: chat template {name!r} is no valid Unicode at {error.start}") from error
    return files


def template_faults(files: Mapping[str, bytes]) -> Iterator[str]:
    """Yield a line for each template that cannot be used, and one if there is none.

    Args:
        files: The files of a tokenizer's folder in a bundle.
    """
    templates = templates_of(files, "tokenizer")
    if not templates:
        yield "no chat template: generate works, chat does not"
    for template in templates.values():
        try:
            ChatTemplate(template.text, template.where)
        except BundleError as error:
            yield f"{error}: chat does not work"
