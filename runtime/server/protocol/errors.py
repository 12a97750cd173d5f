"""Errors as OpenAI's clients expect them: a status, and a body that says what would be right."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from adaptc.runtime.errors import AdaptcError, RequestError

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: Of HTTP.
        message: One line: where, what, and what would be right.
        code: A word for programs; None if the status says enough.
        param: The field of the request that is wrong, such as "messages[0].role".
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = _KINDS.get(self.status) or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def api_error(error: AdaptcError) -> ApiError:
    """The answer to an error that the runtime raised.

    What an engine says may name files of this machine; it is for the log, not for clients.
    """
    text = str(error)
    if not isinstance(error, RequestError):
        return ApiError(500, "server: the engine failed; the log says why, under this request's id", code="engine")
    if text.startswith("session: closed"):
        return unavailable("server: it is shutting down; ask another one, or later")
    code = "context_length_exceeded" if re.match(r"prompt: \d+ tokens; this bundle holds", text) else None
    named = re.match(r"[a-z_]+(?:\[\d+\])?(?=: )", text)
    return ApiError(400, text, code=code, param=named[0] if named else None)


def unavailable(message: str, seconds: int = 1) -> ApiError:
    """503, with the time after which asking again makes sense."""
    return ApiError(503, message, code="unavailable", headers={"Retry-After": str(seconds)})
