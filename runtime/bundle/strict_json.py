"""Dataclasses from JSON in which every key is required and every type is checked: what reads can be used."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from adaptc.runtime.errors import BundleError


@cache
def _fields(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def read_json(kind: Any, value: Any) -> Any:
    """`value`, parsed from JSON, as the dataclass `kind`.

    Raises:
        BundleError: a key is missing, unknown or of the wrong type.
    """
    return _read(kind, value, "")


def _read(kind: Any, value: Any, where: str) -> Any:
    """`value`, parsed from JSON, as the type `kind`; BundleError with the place if it is not one."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _read_object(kind, value, where)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        options = [option for option in arguments if option is not NoneType]
        return _read(next((o for o in options if _like(value, o)), options[0]), value, where)
    if origin is tuple and isinstance(value, list):
        many = arguments[-1] is Ellipsis
        if many or len(arguments) == len(value):
            kinds = arguments[:1] * len(value) if many else arguments
            return tuple(_read(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {key: _read(arguments[1], item, _join(where, key)) for key, item in value.items()}
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    raise BundleError(f"{where}: {_short(value)}; {_spell(kind)} is needed")


def _read_object(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise BundleError(f"{where}: {_short(value)}; an object is needed")
    kinds = _fields(kind)
    for key in [key for key in kinds if key not in value]:
        raise BundleError(f"{_join(where, key)}: missing")
    for key in [key for key in value if key not in kinds]:
        raise BundleError(f"{_join(where, key)}: unknown key; there are: {', '.join(kinds)}")
    return kind(**{key: _read(kinds[key], value[key], _join(where, key)) for key in kinds})


def _like(value: object, kind: Any) -> bool:
    """Whether a value is meant to be of this kind, one of several: an object is told by its first key."""
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return next(iter(value), None) == dataclasses.fields(kind)[0].name
    return type(value) is kind


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _spell(kind: Any) -> str:
    plain = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    if get_origin(kind) is tuple:
        lengths = get_args(kind)
        return "a list" if lengths[-1] is Ellipsis else f"a list of {len(lengths)}"
    return plain.get(kind, "an object")
