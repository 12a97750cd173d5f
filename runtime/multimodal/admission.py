"""What a job is told when it comes: that it is queued and when it will end, or why not and what would do."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a job is accepted.

    Attributes:
        accepted: Whether it is queued.
        finish: Predicted time of its end, in seconds on the caller's clock; what usually comes after it is foreseen.
        latest: The time by which it ends in 19 of 20 cases if no further job comes; what deadlines are compared with.
        why: The reason if it is refused, and what would do; else "".
    """

    accepted: bool
    finish: float
    latest: float
    why: str = ""


def refusal(came: float, deadline: float, latest: float, possible: float, pushed: int) -> str:
    """Why a job is refused, and what would do, in the milliseconds that clients say.

    Args:
        came: When it came, as all times in seconds on one clock.
        deadline: The job's.
        latest: When it would have ended.
        possible: The earliest deadline that would do.
        pushed: How many accepted jobs would be late with it.
    """
    if latest > deadline:
        given = (deadline - came) * 1e3
        what = f"{(latest - came) * 1e3:.0f} ms are needed, {given:{'.0f' if given >= 10 else '.3g'}} were given"
    else:
        what = f"with it {pushed} accepted job{'s' if pushed > 1 else ''} would be late"
    enough = math.ceil((possible - came) * 1e3)
    return f"deadline: {what}; deadline_ms from {enough} on would do, and fewer requests or a lower accuracy need less"
