"""Check a body against its schema: the same that the OpenAPI document publishes.

The schemas use a small part of JSON Schema, and this reads that part. A message names the field and what is right.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from adaptc.runtime.server.protocol.errors import ApiError
from adaptc.runtime.validation import shown

Schema = Mapping[str, Any]

_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


def checked(body: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """A body of the form that a schema asks for, without fields that are null: they count as left out.

    Raises:
        ApiError: 400; a field is wrong, unknown, or missing.
    """
    _check(body, schema, "")
    return {name: value for name, value in body.items() if value is not None}


def _check(value: Any, schema: Schema, where: str) -> None:
    if "anyOf" in schema:
        _check_any(value, schema["anyOf"], where)
        return
    if not _is_of(value, schema):
        raise _wrong(value, where, _needed(schema))
    if isinstance(value, str):
        _check_size(len(value), schema, where, "Length", "characters")
    elif isinstance(value, list):
        _check_size(len(value), schema, where, "Items", "entries")
        for index, each in enumerate(value):
            _check(each, schema.get("items", {}), f"{where}[{index}]")
    elif isinstance(value, dict):
        _check_size(len(value), schema, where, "Properties", "entries")
        _check_fields(value, schema, where)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and not _is_in_range(value, schema):
        raise _wrong(value, where, _needed(schema))


def _check_any(value: Any, schemas: Sequence[Schema], where: str) -> None:
    """One of several forms; if it is of one's type, that one says what is wrong."""
    failures: list[ApiError] = []
    for each in schemas:
        try:
            _check(value, each, where)
        except ApiError as error:
            failures += [error] if _is_of(value, {"type": each.get("type", [])}) else []
        else:
            return
    # Of lists of several kinds the one that went furthest is meant.
    if failures:
        raise max(failures, key=lambda error: len(error.param or ""))
    raise _wrong(value, where, " or ".join(dict.fromkeys(_needed(each) for each in schemas)))


def _check_fields(value: Mapping[str, Any], schema: Schema, where: str) -> None:
    known = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    prefix = f"{where}." if where else ""
    for name in schema.get("required", ()):
        if value.get(name) is None:
            raise ApiError(400, f"{prefix}{name}: missing; {_needed(known[name])} is needed", param=f"{prefix}{name}")
    for name, each in value.items():
        if name in known:
            if each is not None:
                _check(each, known[name], f"{prefix}{name}")
        elif others is False:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            label = name if name.isidentifier() and len(name) < 60 else shown(name)
            raise ApiError(400, f"{prefix}{label}: no such field; {hint}", code="unknown_field", param=prefix + label)
        elif isinstance(others, Mapping):
            _check(each, others, f"{prefix}{name if len(name) < 60 else shown(name)}")


def _check_size(size: int, schema: Schema, where: str, of: str, what: str) -> None:
    least, most = schema.get(f"min{of}", 0), schema.get(f"max{of}")
    if size < least or (most is not None and size > most):
        right = f"{least} or more" if most is None else f"{least} to {most}"
        raise ApiError(400, f"{where or 'body'}: {size} {what}; {right} are right", param=where or None)


def _is_of(value: object, schema: Schema) -> bool:
    if "enum" in schema:
        return isinstance(value, (str, bool, int)) and any(
            value == each and type(value) is type(each) for each in schema["enum"]
        )
    if "type" not in schema:
        return True
    names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if isinstance(value, bool):
        return "boolean" in names
    return any(isinstance(value, _TYPES[name]) for name in names)


def _is_in_range(value: float, schema: Schema) -> bool:
    low, above, high = schema.get("minimum"), schema.get("exclusiveMinimum"), schema.get("maximum")
    return (low is None or value >= low) and (above is None or value > above) and (high is None or value <= high)


def _needed(schema: Schema) -> str:
    """What a schema asks for, in words."""
    if "needed" in schema:
        return str(schema["needed"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_needed(each) for each in schema["anyOf"]))
    if "enum" in schema:
        return "one of " + ", ".join(
            repr(each) if isinstance(each, str) else str(each).lower() for each in schema["enum"] if each is not None
        )
    names = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", ["value"])
    words = {"integer": "whole number", "number": "number", "array": "list"}
    name = next((each for each in names if each != "null"), "null")
    word = words.get(name, name)
    text = f"an {word}" if word[0] in "aeio" else f"a {word}"
    low, above, high = schema.get("minimum"), schema.get("exclusiveMinimum"), schema.get("maximum")
    text += f" from {_shown(low)}" if low is not None else f" above {_shown(above)}" if above is not None else ""
    return text + (f" to {_shown(high)}" if high is not None else "")


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _wrong(value: object, where: str, needed: str) -> ApiError:
    return ApiError(400, f"{where or 'body'}: {shown(value)}; {needed} is needed", param=where or None)
