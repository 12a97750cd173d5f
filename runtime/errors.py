"""What can go wrong, and whose fault it is.

::

    AdaptcError              every error adaptc raises on purpose
    ├── RequestError         a request asks for something that cannot be
    ├── BundleError          a bundle on disk is missing, damaged or of another version
    │   └── ReplacedError    another bundle was put in the place of one that is open
    ├── EngineError          an engine cannot be loaded or run
    ├── SpecError            model.yaml is wrong                       (adaptc.errors)
    ├── LoadError            a pretrained model cannot be read         (adaptc.errors)
    └── PassError            a rewrite cannot be done                  (adaptc.errors)

Each message is one line: *where: what; what would be right*.
Anything else that reaches a user is our bug and keeps its traceback.
"""

from __future__ import annotations


class AdaptcError(Exception):
    """The root of every error adaptc raises on purpose."""


class RequestError(AdaptcError):
    """A request asks for something that cannot be: a prompt too long, a temperature below zero."""


class BundleError(AdaptcError):
    """A bundle on disk is missing, damaged, or of a version this adaptc does not read."""


class ReplacedError(BundleError):
    """Another bundle was put in the place of one that is open; that one can be opened."""


class EngineError(AdaptcError):
    """An engine cannot be loaded or run here."""
