"""Frozen dataclasses to JSON and back: what is written can be read, and what reads can be used.

The declared types say the form. Every key is required, no other is allowed, every type is checked, and an error names
its place: `graphs.lm.kv[0]: [1]; a list of 2 is needed`. NaN and infinity are refused, except where a field is declared
as `ExtendedFloat`.

This is a codec of our own because the runtime depends on NumPy alone, which rules out pydantic and msgspec; because
both of these convert where we refuse; and because it is small.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from functools import cache
from itertools import accumulate
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from adaptc.runtime.errors import BundleError

T = TypeVar("T")

ExtendedFloat = Annotated[float, "extended"]
"""A float that may be infinite: JSON has null for -inf and "inf" for inf."""

_INFINITIES = {-math.inf: None, math.inf: "inf"}
_DEEPEST = 64  # what is written has about ten
_STRING = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)', re.DOTALL)  # one without an end is one to the end
_OTHER = re.compile(r"[^\[\]{}]+")
_PLAIN = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def dumps(value: Any, indent: int | None = None) -> str:
    """The JSON text of a dataclass.

    Raises:
        BundleError: a value is not of its declared type, or not finite.
    """
    return json.dumps(to_json(value), indent=indent, allow_nan=False) + "\n"


def loads(kind: type[T], text: str | bytes, *, defaults: bool = False) -> T:
    """Read a dataclass from its JSON text.

    Args:
        kind: The dataclass.
        text: What `dumps` gave.
        defaults: Whether keys with a default may be missing, as they are in files of an older adaptc.

    Raises:
        BundleError: not JSON; or a key is missing, unknown or of the wrong type.
    """
    return read_json(kind, parse(text), defaults=defaults)


def parse(text: str | bytes) -> Any:
    """Parse JSON in UTF-8, which has no NaN, no infinity and no lone surrogate.

    Raises:
        BundleError: not JSON; or a key is there twice, a number is beyond 64 bits, or lists and objects are nested
            deeper than anything that is written.
    """
    try:
        content = text.decode() if isinstance(text, bytes) else text
        _check_depth(content)
        value = json.loads(
            content,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_unique,
        )
        # Escapes may spell halves of characters, which no file can be named by and no terminal can show.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BundleError(f"not JSON: {_reason(error)}") from error
    return value


def to_json(value: Any) -> Any:
    """A dataclass as `json.dumps` takes it.

    Raises:
        BundleError: a value is not of its declared type, or not finite.
    """
    return _write(type(value), value, "")


def read_json(kind: type[T], value: Any, *, defaults: bool = False) -> T:
    """Read a dataclass from parsed JSON, by the rules of `loads`.

    Raises:
        BundleError: a key is missing, unknown or of the wrong type.
    """
    result: T = _read(kind, value, "", defaults)
    return result


@cache
def _fields(kind: type) -> dict[str, Any]:
    """The declared type of each field, in the dataclass's order."""
    kinds = get_type_hints(kind, include_extras=True)
    return {field.name: kinds[field.name] for field in dataclasses.fields(kind)}


@cache
def _optional(kind: type) -> frozenset[str]:
    """Names of the fields that have a default."""
    missing = dataclasses.MISSING
    fields = dataclasses.fields(kind)
    return frozenset(f.name for f in fields if f.default is not missing or f.default_factory is not missing)


def _write(kind: Any, value: Any, where: str) -> Any:
    """`value`, declared as `kind`, as JSON has it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return _write_any(value, where)
    if kind == ExtendedFloat and value in _INFINITIES:
        return _INFINITIES[value]
    if dataclasses.is_dataclass(kind) and type(value) is kind:
        return _write_object(kind, value, where)
    if origin in (Union, UnionType):
        return None if value is None and NoneType in arguments else _write(_option(value, arguments), value, where)
    if origin is tuple and isinstance(value, tuple) and (kinds := _item_kinds(arguments, len(value))) is not None:
        return [_write(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True))]
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {_key(key, where): _write(arguments[1], item, _join(where, key)) for key, item in value.items()}
    if kind in (str, bool, int) and type(value) is kind:
        return value
    if origin is Literal and _is_one_of(value, arguments):
        return value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind in (float, ExtendedFloat) and number and math.isfinite(value):
        return value if isinstance(value, int) else float(value)
    raise BundleError(f"{where}: {_short(value)}; {_spell(kind)} is needed")


def _is_one_of(value: object, known: tuple[object, ...]) -> bool:
    return any(type(value) is type(each) and value == each for each in known)


def _write_object(kind: Any, value: Any, where: str) -> dict[str, Any]:
    return {key: _write(each, getattr(value, key), _join(where, key)) for key, each in _fields(kind).items()}


def _write_any(value: Any, where: str) -> Any:
    """A value that is carried but not interpreted."""
    if isinstance(value, (list, tuple)):
        return [_write_any(each, f"{where}[{i}]") for i, each in enumerate(value)]
    if isinstance(value, Mapping):
        return {_key(key, where): _write_any(item, _join(where, key)) for key, item in value.items()}
    if value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise BundleError(f"{where}: {_short(value)}; plain, finite JSON values are needed")


def _read(kind: Any, value: Any, where: str, defaults: bool) -> Any:
    """`value`, parsed from JSON, as the type `kind`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if kind == ExtendedFloat:
        for infinity, spelled in _INFINITIES.items():
            if value is spelled or (value == spelled and type(value) is str):
                return infinity
        return _read(float, value, where, defaults)
    if dataclasses.is_dataclass(kind):
        return _read_object(kind, value, where, defaults)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        return _read(_option(value, arguments), value, where, defaults)
    if origin is tuple and isinstance(value, list) and (kinds := _item_kinds(arguments, len(value))) is not None:
        pairs = enumerate(zip(kinds, value, strict=True))
        return tuple(_read(k, v, f"{where}[{i}]", defaults) for i, (k, v) in pairs)
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {key: _read(arguments[1], item, _join(where, key), defaults) for key, item in value.items()}
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    if origin is Literal and _is_one_of(value, arguments):
        return value
    raise BundleError(f"{where}: {_short(value)}; {_spell(kind)} is needed")


def _read_object(kind: Any, value: Any, where: str, defaults: bool) -> Any:
    if not isinstance(value, dict):
        raise BundleError(f"{where}: {_short(value)}; an object is needed")
    kinds = _fields(kind)
    optional = _optional(kind) if defaults else frozenset()
    for key in [key for key in kinds if key not in value and key not in optional]:
        raise BundleError(f"{_join(where, key)}: missing")
    for key in [key for key in value if key not in kinds]:
        raise BundleError(f"{_join(where, key)}: unknown key; there are: {', '.join(kinds)}")
    return kind(**{key: _read(kinds[key], value[key], _join(where, key), defaults) for key in kinds if key in value})


def _option(value: object, options: tuple[Any, ...]) -> Any:
    """Which of a union's types a value is meant to be: a JSON object is recognised by the first field's key."""

    def matches(kind: Any) -> bool:
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            return dataclasses.fields(kind)[0].name in value
        return type(value) is kind

    options = tuple(option for option in options if option is not NoneType)
    return next((option for option in options if matches(option)), options[0])


def _item_kinds(arguments: tuple[Any, ...], length: int) -> tuple[Any, ...] | None:
    """The declared type of each item of a tuple; None if it has another length."""
    if arguments[-1] is Ellipsis:
        return arguments[:1] * length
    return arguments if len(arguments) == length else None


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise BundleError(f"{where}: key {key!r}; a string is needed")
    return key


def _short(value: object) -> str:
    return _cut(json.dumps(value, default=repr))


def _cut(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _spell(kind: Any) -> str:
    if kind == ExtendedFloat:
        return _PLAIN[float]
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if get_origin(kind) is tuple:
        lengths = get_args(kind)
        return "a list" if lengths[-1] is Ellipsis else f"a list of {len(lengths)}"
    return _PLAIN.get(kind, "an object")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{_cut(digits)} is too large for a number")
    return value


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(1 << 63) <= int(digits) < 1 << 64:
        raise ValueError(f"{_cut(digits)} is too large for a whole number")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's keys and values; readers differ in which of two equal keys they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"key {_short(twice)} is there twice")
    return found


def _check_depth(text: str) -> None:
    """Refuse lists and objects that are nested too deep; parsers and writers of some Pythons have no limit."""
    brackets = _OTHER.sub("", _STRING.sub("", text))
    if max(accumulate(1 if each in "[{" else -1 for each in brackets), default=0) > _DEEPEST:
        raise ValueError(f"nested more than {_DEEPEST} deep")


def _reason(error: Exception) -> str:
    """What is wrong, without the content in which it is."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return "half a character (a lone surrogate)"
    return str(error)
