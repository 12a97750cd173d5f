"""A finding of `adaptc check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check came to.

    Attributes:
        about: Its subject: a model's name, `models`, `passes`, `stitch`, `calibration` or `machine`.
        level: `ok`, `warn` (it will work, perhaps not as intended) or `error` (it cannot work).
        text: A sentence: what is so, and what would be right.
    """

    about: str
    level: Level
    text: str
