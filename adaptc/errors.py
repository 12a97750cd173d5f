"""The compiler's errors; the tree is drawn in `adaptc.runtime.errors`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adaptc.runtime.errors import AdaptcError, BundleError, EngineError, RequestError

__all__ = [
    "AdaptcError",
    "BundleError",
    "EngineError",
    "LoadError",
    "PassError",
    "RequestError",
    "SpecError",
    "foreign",
    "one_line",
]


class SpecError(AdaptcError):
    """model.yaml is wrong; one line each for every fault found."""


class LoadError(AdaptcError):
    """A pretrained model cannot be found, read, or is of a kind adaptc cannot capture."""


class PassError(AdaptcError):
    """A pass cannot do what its options ask of this program."""


def one_line(said: object) -> str:
    """Return another library's message, or a value of a stranger's file, as one line of at most 200 characters."""
    return " ".join(str(said).split())[:200]


@contextmanager
def foreign(refusal: str) -> Iterator[None]:
    """Make a `LoadError` of whatever a library raises over somebody else's file.

    Libraries that read tokenizers and configs raise what their code happens to hit: nearly any exception, and panics
    of Rust code, which are no `Exception`. What the user and the interpreter ask for (an interrupt, an exit) passes.

    Args:
        refusal: The message's begin: *where: what*.

    Raises:
        LoadError: the library raised something; the message has its text.
    """
    try:
        yield
    except (AdaptcError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise LoadError(f"{refusal}: {one_line(error) or type(error).__name__}") from error
