"""The compiler's errors; the tree is drawn in `adaptc.runtime.errors`."""

from __future__ import annotations

from adaptc.runtime.errors import AdaptcError, BundleError, EngineError, RequestError

__all__ = [
    "AdaptcError",
    "BundleError",
    "EngineError",
    "LoadError",
    "PassError",
    "RequestError",
    "SpecError",
    "one_line",
]


class SpecError(AdaptcError):
    """model.yaml is wrong; one line each for every fault found."""


class LoadError(AdaptcError):
    """A pretrained model cannot be found, read, or is of a kind adaptc cannot capture."""


class PassError(AdaptcError):
    """A pass cannot do what its options ask of this program."""


def one_line(error: Exception) -> str:
    """Return another library's message as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]
