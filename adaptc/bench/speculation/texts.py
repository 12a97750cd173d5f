"""Texts and code that come with every Python: pages of its help and functions of its library.

Nothing of them is part of adaptc, and nothing in adaptc is calibrated on them.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import textwrap
from collections.abc import Iterator

from adaptc.bench.prompt import TEXT

DOCUMENTED = (
    "argparse",
    "calendar",
    "configparser",
    "copy",
    "csv",
    "decimal",
    "difflib",
    "gettext",
    "heapq",
    "json",
    "mimetypes",
    "random",
    "sched",
    "statistics",
    "timeit",
    "uuid",
)
"""Modules whose docstring is a text."""

PROGRAMMED = (
    "ast",
    "base64",
    "calendar",
    "colorsys",
    "copy",
    "difflib",
    "dis",
    "filecmp",
    "fnmatch",
    "getopt",
    "glob",
    "gzip",
    "inspect",
    "ipaddress",
    "locale",
    "mimetypes",
    "pprint",
    "shutil",
    "statistics",
    "textwrap",
    "tokenize",
    "traceback",
    "types",
    "urllib.parse",
    "uuid",
)
"""Modules whose functions are read."""

_SHORTEST = 300
"""Characters that a text has at least, unless fewer are asked for."""

_PARAGRAPH = 80
_LEGAL = re.compile(r"copyright|licen[cs]e|warranty", re.IGNORECASE)
_RULE = re.compile(r"^\s*([*=~^-])\1{3,}\s*$", re.MULTILINE)
_FIRST_WORD = re.compile(r"[A-Z]\w*[ ,]")


def passages(size: int) -> list[str]:
    """Prose of up to `size` characters each: whole sentences from the start of a page.

    Args:
        size: From 1.
    """
    pages = [*_pages(), TEXT]
    found = [_up_to(" ".join(_prose(page)), size) for page in pages]
    return list(dict.fromkeys(text for text in found if len(text) >= min(_SHORTEST, size // 2) and text))


def functions(size: int) -> list[tuple[str, str]]:
    """Names and source code of functions of the standard library, of up to `size` characters each.

    Args:
        size: From 1.
    """
    found = []
    for name in PROGRAMMED:
        module = importlib.import_module(name)
        for own, value in sorted(vars(module).items()):
            if not inspect.isfunction(value) or value.__module__ != name or value.__name__ != own or own[0] == "_":
                continue
            code = _source(value)
            if min(_SHORTEST, size // 2) <= len(code) <= size and code.startswith("def ") and not _LEGAL.search(code):
                found.append((own, code))
    return found


def _pages() -> Iterator[str]:
    """The pages of `help()`, where they are installed, and the docstrings of modules."""
    if importlib.util.find_spec("pydoc_data") is not None:
        from pydoc_data.topics import topics

        yield from (topics[name] for name in sorted(topics))
    for name in DOCUMENTED:
        yield inspect.getdoc(importlib.import_module(name)) or ""


def _prose(page: str) -> Iterator[str]:
    """Its paragraphs, each on one line, without headings, code, grammars and what is about rights."""
    for part in re.split(r"\n\s*\n", page):
        line = " ".join(part.split())
        plain = _FIRST_WORD.match(part) and "::=" not in part and ">>>" not in part and not _RULE.search(part)
        if plain and len(line) >= _PARAGRAPH and not _LEGAL.search(line):
            yield line


def _up_to(text: str, size: int) -> str:
    """The sentences at the start of a text that have up to `size` characters together; "" if the first has more."""
    if len(text) <= size:
        return text
    end = max(text.rfind(f"{mark} ", 0, size) for mark in ".!?")
    return text[: end + 1]


def _source(function: object) -> str:
    try:
        return textwrap.dedent(inspect.getsource(function)).strip()  # type: ignore[arg-type]
    except (OSError, TypeError):  # a Python without sources
        return ""
