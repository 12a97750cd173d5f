"""Pydantic's errors as sentences a user can act on."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from adaptc.spec.positions import Fault, Path

# "expected …, got …": what pydantic's error types expect
_EXPECTED = {
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dataclass_type": "a mapping",
    "dict_type": "a mapping",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "a mapping",
    "none_required": "nothing",
    "path_type": "a path",
    "string_type": "text",
    "tuple_type": "a list",
}
_BOUNDS = {
    "finite_number": "must be finite",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entries",
}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: `; did you mean 'x'?` or `; there are: …`."""
    known = sorted(known)
    if close := _close(name, known):
        return f"; did you mean {close!r}?"
    return f"; there are: {', '.join(known)}" if known else "; there are none"


def _close(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def faults_of(error: ValidationError, kind: Any, data: Any, prefix: Path = ()) -> list[Fault]:
    """Return one fault for each value that pydantic refused.

    Args:
        error: What pydantic raised.
        kind: The type that was validated, for the names of its fields.
        data: The values that were validated.
        prefix: Where `data` stands in the document.
    """
    by_path: dict[Path, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        if detail["type"] == "default_factory_not_called":
            continue  # it follows from another fault, which has its own line
        by_path.setdefault(_path(detail, data), []).append(detail)
    # Where a value may be of several kinds, the kind that fits best has its errors deepest inside.
    best = {
        path: details
        for path, details in by_path.items()
        if _expected(details[0]) is None or not any(other != path == other[: len(path)] for other in by_path)
    }
    return [Fault(prefix + path, what) for path, details in best.items() if (what := _what(details, kind, path, data))]


def unknown_keys(kind: Any, data: Any, prefix: Path = ()) -> list[Fault]:
    """Return a fault for each key that the dataclass there has no field for.

    Args:
        kind: The type that `data` is for; within it, dataclasses at any depth are looked at.
        data: Values of JSON's kinds.
        prefix: Where `data` stands in the document.
    """
    faults: list[Fault] = []

    def look(value: Any, path: Path) -> None:
        if isinstance(value, dict):
            known = _fields(kind, path)
            for key, below in value.items():
                if known and key not in known:
                    renamed = _renamed(kind, path).get(key)
                    right = f"; it is called {renamed!r} now" if renamed else nearest(key, known)
                    faults.append(Fault((*prefix, *path, key), f"unknown key{right}"))
                else:
                    look(below, (*path, key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                look(item, (*path, index))

    look(data, ())
    return faults


def _renamed(kind: Any, path: Path) -> Mapping[str, str]:
    """Return the new names of keys that a pass had in an earlier release, by their old names."""
    return getattr(kind, "renamed", {}) if path == () else {}


def _path(detail: ErrorDetails, data: Any) -> Path:
    """Return the error's place in the data, without the tags pydantic adds for unions and keys."""
    path: list[str | int] = []
    for part in detail["loc"]:
        inside = (
            part < len(data)
            if isinstance(data, list) and isinstance(part, int)
            else isinstance(data, dict) and part in data
        )
        if inside:
            path.append(part)
            data = data[part]
    return tuple(path)


def _what(details: Sequence[ErrorDetails], kind: Any, path: Path, data: Any) -> str:
    """Return what is wrong at a path; empty if another fault states it better."""
    detail = details[0]
    code, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if code in ("extra_forbidden", "unexpected_keyword_argument"):
        return "unknown key" + nearest(str(path[-1]), _fields(kind, path[:-1]))
    if code in ("missing", "missing_argument"):
        for part in path:
            data = data[part]
        known = _fields(kind, path)
        # A misspelt or renamed key is one fault, not an unknown key and a missing one.
        renamed = _renamed(kind, path)
        meant = {renamed.get(key) or _close(key, known) for key in data if key not in known}
        missing = [str(each["loc"][-1]) for each in details if each["type"] == code]
        missing = [name for name in missing if name not in meant]
        if not missing:
            return ""
        keys = ", ".join(repr(name) for name in missing)
        return f"key{'s' if len(missing) > 1 else ''} {keys} {'are' if len(missing) > 1 else 'is'} missing"
    if code == "string_pattern_mismatch":
        return f"{_show(value)} is not a name: letters, digits and _, not starting with a digit"
    if code in ("string_too_short", "too_short") and context["min_length"] == 1:
        return "must not be empty"
    if code in _BOUNDS:
        return f"{_BOUNDS[code].format(**context)}, got {_show(value)}"
    wanted = dict.fromkeys(_expected(each) for each in details)
    if None not in wanted:
        return f"expected {' or '.join(map(str, wanted))}, got {_show(value)}"
    return detail["msg"].removeprefix("Value error, ")


def _expected(detail: ErrorDetails) -> str | None:
    if detail["type"] in ("literal_error", "enum"):
        choices = detail["ctx"]["expected"].replace(" or ", ", ").replace("'", "")
        return f"one of {choices}" if "," in choices else str(choices).replace("False", "false")
    return _EXPECTED.get(detail["type"])


def _fields(kind: Any, path: Path) -> list[str]:
    """Return the names of the fields at a path within a type; empty where it has none."""
    for part in path:
        kind = _plain(kind)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind, include_extras=True).get(str(part))
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(part))
            kind = field.annotation if field else None
        else:  # a mapping or list: the last argument is the type of its values
            kind = (typing.get_args(kind) or (None,))[-1 if isinstance(part, str) else 0]
    kind = _plain(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind) if field.init]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return list(kind.model_fields)
    return []


def _plain(kind: Any) -> Any:
    """Return the type without Annotated and `| None`."""
    while (origin := typing.get_origin(kind)) in (typing.Annotated, typing.Union, types.UnionType):
        options = [each for each in typing.get_args(kind) if each is not type(None)]
        if origin is not typing.Annotated and len(options) > 1:
            options = [each for each in options if not isinstance(each, type) or each.__module__ != "builtins"]
        if not options:
            return None
        kind = options[0]
    return kind


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
