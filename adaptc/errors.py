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
]


class SpecError(AdaptcError):
    """model.yaml is wrong; one line each for every fault found."""


class LoadError(AdaptcError):
    """A pretrained model cannot be found, read, or is of a kind adaptc cannot capture."""


class PassError(AdaptcError):
    """A pass cannot do what its options ask of this program."""
