"""The process that something was loaded in."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from adaptc.runtime.errors import RequestError


@dataclass(frozen=True, slots=True)
class Home:
    """The process in which an object was made.

    A fork has a copy of the object's memory, but none of the threads that work for it, and its locks may be held by
    one of these for ever. So an object asks for its home before it takes a lock.
    """

    process: int = field(default_factory=os.getpid)

    @property
    def left(self) -> bool:
        """Whether this process is another one, a fork of the object's."""
        return os.getpid() != self.process

    def check(self, what: str) -> None:
        """Refuse to go on in a fork.

        Args:
            what: What messages call the object.

        Raises:
            RequestError: this process is another one.
        """
        if self.left:
            raise RequestError(f"{what}: loaded before this process was forked; load the bundle in this process")
