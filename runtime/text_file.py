"""Text files that a user names, such as one with keys."""

from __future__ import annotations

from pathlib import Path

from adaptc.runtime.errors import RequestError


def read_text(path: Path, needed: str) -> str:
    """The text of a file in UTF-8.

    Args:
        path: The file.
        needed: What kind of file it should be, for the message.

    Raises:
        RequestError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RequestError(f"{path}: cannot be read: {reason}; {needed} is needed") from error
