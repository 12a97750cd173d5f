"""The pages' templates, which quote what they are given, and their style."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

FOLDER = Path(__file__).parent


def render(name: str, context: Mapping[str, Any]) -> str:
    """A page that needs nothing but itself.

    Args:
        name: The template's file beside this one.
        context: What it is filled with; text is quoted.
    """
    style = (FOLDER / "style.css").read_text(encoding="utf-8")
    return str(_environment().get_template(name).render(dict(context) | {"style": style}))


@cache
def _environment() -> jinja2.Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
