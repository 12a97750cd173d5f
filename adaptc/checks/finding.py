"""What `adaptc check` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        about: What: a model's name, `target`, `calibration` or `machine`.
        level: `ok`, `warn` (it will work, perhaps not as wished) or `error` (it cannot work).
        text: What was found, and what would be right.
    """

    about: str
    level: Level
    text: str
