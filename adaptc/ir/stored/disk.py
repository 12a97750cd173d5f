"""What the disk says to safetensors, as the error of the system that it was."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

_NUMBER = re.compile(r"\(os error (\d+)\)")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Write something with whatever library; safetensors has an error of its own for a full disk.

    Args:
        path: What is written, for the error.

    Raises:
        OSError: it cannot be written.
    """
    try:
        yield
    except Exception as error:  # named and not imported: a cache is looked at without safetensors too
        told = _NUMBER.search(str(error)) if type(error).__name__ == "SafetensorError" else None
        if told is None:
            raise
        number = int(told[1])
        raise OSError(number, os.strerror(number), str(path)) from error
