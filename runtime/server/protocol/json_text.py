"""Read and write JSON as it goes over the wire: strictly one way, compactly the other."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from adaptc.runtime.server.protocol.errors import ApiError
from adaptc.runtime.validation import shown


def read_object(content: bytes) -> dict[str, Any]:
    """The object that a body is.

    Raises:
        ApiError: it is no JSON of this kind.
    """
    try:
        value = json.loads(content.decode(), parse_constant=_constant)
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate would fail much later
    except UnicodeEncodeError as error:
        raise ApiError(400, "body: a lone surrogate (\\ud800 to \\udfff); whole characters are right") from error
    except RecursionError as error:
        raise ApiError(400, "body: nested too deep; fewer lists within lists are right") from error
    except ValueError as error:  # also of UTF-8, and of numbers with thousands of digits
        raise ApiError(400, f"body: not JSON: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(value, dict):
        raise ApiError(400, f"body: {shown(value)}; a JSON object is needed")
    return value


def compact(value: object) -> bytes:
    """JSON without spaces, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def event(value: object) -> bytes:
    """A server-sent event with a value."""
    return b"data: " + compact(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"
"""The last event of a stream."""


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
