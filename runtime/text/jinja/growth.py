"""How heavy the result of an operation in a chat template will be, so that it can be refused before it is made.

Each function takes what the filter or the method takes, by the same names, and gives a bound of the result's weight,
or of its work where that is more. What is not listed makes nothing heavier than what it is given, times a small number.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from adaptc.runtime.text.jinja.meter import weigh

Bound = Callable[..., float]

_DIGITS = re.compile(r"\d+")
_INFINITE = float("inf")
_QUICK_PRODUCT = 64
"""Characters compared for one of weight: some searches compare every part of a text with what they look for."""
_SLOW_TEXT = 1 << 16
"""Characters for filters made of regular expressions, which can take the square of a text's length."""
_BASES = 4096
"""Digits of a number, which are read in the square of their count."""
_CODECS = ("utf-8", "utf8", "utf-16", "utf-32", "ascii", "latin-1", "latin1", "iso-8859-1")


def product(left: Any, right: Any) -> float:
    """Weight of `left * right`."""
    if isinstance(left, int) and not isinstance(right, int):
        left, right = right, left
    if isinstance(right, int) and isinstance(left, (str, bytes, list, tuple)):
        return max(0, right) * weigh(left)
    return 0


def power(left: Any, right: Any) -> float:
    """Weight of `left ** right`: a whole number's."""
    if isinstance(left, int) and isinstance(right, int) and right > 0:
        return left.bit_length() * right
    return 0


def remainder(left: Any, right: Any) -> float:
    """Weight of `left % right`, where `left` is a text to fill in."""
    if not isinstance(left, (str, bytes)):
        return 0
    form = left if isinstance(left, str) else left.decode("latin-1")
    stars = form.count("*") * max((abs(part) for part in _parts(right) if isinstance(part, int)), default=0)
    return _widths(form) + stars + form.count("%") * _heaviest(right) + len(form)


def filled(text: str, *args: Any, **values: Any) -> float:
    """Weight of `text.format(...)`."""
    weight = float(len(text))
    heaviest = max(_heaviest(args), _heaviest(values))
    try:
        fields = list(string.Formatter().parse(text))
    except ValueError:
        return 0  # it will be refused
    for _, name, form, _ in fields:
        if name is not None:
            # A width that is itself a field could be any number that is given.
            weight += heaviest + (_INFINITE if "{" in (form or "") else _widths(form or ""))
    return weight


def filled_from(text: str, mapping: Any) -> float:
    """Weight of `text.format_map(mapping)`."""
    return filled(text, mapping)


def _widths(form: str) -> float:
    """The sum of the numbers in a format."""
    return float(sum(_INFINITE if len(digits) > 9 else int(digits) for digits in _DIGITS.findall(form)))


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,)


def _heaviest(values: Any) -> int:
    return max((_written(part) for part in _parts(values)), default=0)


def _written(value: Any) -> int:
    """Characters of a value that is written; a number has a few, and a text in a list may be escaped."""
    return len(value) if isinstance(value, str) else 24 + 10 * weigh(value)


def in_pairs(value: Any = (), *_: Any, **__: Any) -> float:
    """Of work to hash values: they may be chosen so that each is compared with each."""
    return len(_sized(value)) ** 2 / _QUICK_PRODUCT


def _wide(text: Any, width: Any = 80, *_: Any, **__: Any) -> float:
    return _length(text) + _number(width)


def _indented(s: Any, width: Any = 4, first: bool = False, blank: bool = False) -> float:
    one = len(width) if isinstance(width, str) else _number(width)
    text = _text(s)
    return len(text) + (1 + len(text.splitlines())) * one


def _joined(value: Any, d: str = "", attribute: Any = None) -> float:
    parts = _sized(value)
    if isinstance(parts, (str, bytes)):
        return len(parts) * (1 + _length(d))
    return sum(map(_written, parts)) + len(parts) * _length(d)


def _joined_by(text: Any, parts: Any) -> float:
    return _joined(parts, text)


def _replaced(s: Any, old: Any, new: Any, *_: Any) -> float:
    text, sought = _text(s), _text(old)
    return len(text) + (text.count(sought) if sought else len(text) + 1) * len(_text(new))


def _translated(text: Any, table: Any, *_: Any) -> float:
    longest = max((_length(part) for part in table.values()), default=1) if isinstance(table, Mapping) else 1
    return len(text) * max(1, longest)


def _tabs(text: Any, tabsize: Any = 8) -> float:
    return len(text) * (1 + _number(tabsize))


def _split(text: Any, sep: Any = None, maxsplit: Any = -1) -> float:
    """Of pieces; each is an object of some 50 bytes."""
    pieces = len(text) / 2 if sep is None else text.count(sep)
    return len(text) + 8 * pieces


def _searched(text: Any, sub: Any = None, *_: Any, **__: Any) -> float:
    """Of work: from the right, or character by character, all of `sub` may be compared at each place."""
    return 0 if sub is None else len(text) * _length(sub) / _QUICK_PRODUCT


def _split_from_right(text: Any, sep: Any = None, maxsplit: Any = -1) -> float:
    return max(_split(text, sep, maxsplit), _searched(text, sep))


def _encoded(text: Any, encoding: Any = "utf-8", errors: Any = "strict") -> float:
    """Some codecs take the square of a text's length, and one that is not known is looked for in packages."""
    return 4 * len(text) if str(encoding).lower().replace("_", "-") in _CODECS else _INFINITE


def _bytes_of(value: int, length: Any = 1, byteorder: Any = "big", **_: Any) -> float:
    return _number(length)


def _json(value: Any, ensure_ascii: Any = False, indent: Any = None, separators: Any = None, **_: Any) -> float:
    one = len(indent) if isinstance(indent, str) else _number(indent)
    between = sum(map(_length, separators)) if isinstance(separators, (list, tuple)) else 2
    return _json_weight(value, one + between)


def _json_weight(value: Any, indent: float) -> float:
    """Weight of JSON: every entry may begin a line, indented once for each list around it."""
    weight, waiting = 0.0, [(value, 1)]
    while waiting:
        one, depth = waiting.pop()
        if isinstance(one, (list, tuple, Mapping)):
            weight += (indent * depth + 8) * (len(one) + 1)
            parts = [*one.keys(), *one.values()] if isinstance(one, Mapping) else one
            waiting.extend((part, depth + 1) for part in parts)
        else:
            weight += _length(one)
    return weight


def _pieces(value: Any, count: Any, fill_with: Any = None) -> float:
    return 8 * _number(count)


def _rounded(value: Any, precision: Any = 0, method: Any = "common") -> float:
    """10 to the power of the precision is computed."""
    return 1024 * _number(precision)


def _digits(value: Any, *_: Any, **__: Any) -> float:
    return _INFINITE if isinstance(value, str) and len(value) > _BASES else 0


def _slow(value: Any, *_: Any, **__: Any) -> float:
    return _INFINITE if _written(value) > _SLOW_TEXT else 0


def _wrapped(s: Any, width: Any = 79, break_long_words: Any = True, wrapstring: Any = None, *_: Any) -> float:
    text = str(s)
    lines = len(text.splitlines()) + len(text) / max(1, _number(width))
    return _slow(text) + len(text) + lines * (_length(wrapstring) + 1)


def _each(value: Any, *_: Any, **__: Any) -> float:
    """Of work: an attribute may be looked up in each value, and values may be compared."""
    return 64 * len(_sized(value))


def _number(value: Any) -> float:
    return float(abs(value)) if isinstance(value, (int, float)) and abs(value) < 1e18 else _INFINITE if value else 0.0


def _text(value: Any) -> Any:
    return value if isinstance(value, (str, bytes)) else str(value)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple, Mapping, range)) else 24


def _sized(value: Any) -> Any:
    return value if hasattr(value, "__len__") else ()


FILTERS: Mapping[str, Bound] = MappingProxyType(
    {
        "batch": _pieces,
        "center": _wide,
        "dictsort": _each,
        "float": _digits,
        "format": lambda value, *args, **values: remainder(str(value), values or args),
        "groupby": _each,
        "indent": _indented,
        "int": _digits,
        "join": _joined,
        "max": _each,
        "min": _each,
        "pprint": _slow,
        "replace": _replaced,
        "round": _rounded,
        "slice": _pieces,
        "sort": _each,
        "striptags": _slow,
        "sum": _each,
        "tojson": _json,
        "trim": _searched,
        "unique": in_pairs,
        "urlize": _slow,
        "wordwrap": _wrapped,
        "xmlattr": _slow,
    }
)
"""By the filter's name."""

METHODS: Mapping[str, Bound] = MappingProxyType(
    {
        "center": _wide,
        "decode": _encoded,
        "encode": _encoded,
        "expandtabs": _tabs,
        "format": filled,
        "format_map": filled_from,
        "fromkeys": in_pairs,
        "join": _joined_by,
        "ljust": _wide,
        "lstrip": _searched,
        "replace": _replaced,
        "rfind": _searched,
        "rindex": _searched,
        "rjust": _wide,
        "rpartition": _searched,
        "rsplit": _split_from_right,
        "rstrip": _searched,
        "split": _split,
        "strip": _searched,
        "striptags": _slow,
        "to_bytes": _bytes_of,
        "translate": _translated,
        "zfill": _wide,
    }
)
"""By the name of a method of a text, of bytes or of a number."""
