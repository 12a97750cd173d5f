"""Figures of answers: speeds, ratios prompt by prompt, what was drafted, and whether all ways wrote the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from adaptc.bench.figures import same_start
from adaptc.bench.speculation.turns import TimedAnswer

ALL = "all"
"""What figures of all kinds together are called."""

TIMED = 8
"""Tokens that an answer has at least, if its time shall count."""

_SUMS = ("steps", "drafted", "accepted")


@dataclass(frozen=True, slots=True)
class Difference:
    """An answer that is not what the base wrote.

    Attributes:
        prompt: The prompt's place among all.
        kind: Of text.
        way: How it was written.
        turn: From 0.
        same_tokens: How many tokens are the same before the first that differs.
    """

    prompt: int
    kind: str
    way: str
    turn: int
    same_tokens: int


def figures_by_kind(
    answers: Sequence[TimedAnswer], ways: Sequence[str], base: str | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """The figures of each way by kind of text, and those of all kinds together under "all" if there are several.

    Args:
        answers: At least one of each way to each prompt.
        ways: In the order that figures shall have.
        base: The way that the others are compared with; None for the first.
    """
    base = ways[0] if base is None else base
    kinds = list(dict.fromkeys(each.kind for each in answers))
    found = {kind: _figures([each for each in answers if each.kind == kind], ways, base) for kind in kinds}
    return found if len(kinds) == 1 else found | {ALL: _figures(answers, ways, base)}


def differences(answers: Sequence[TimedAnswer], base: str) -> list[Difference]:
    """The answers that are not, token for token, the first one that the base wrote to their prompt."""
    first: dict[int, tuple[int, ...]] = {}
    for each in answers:
        if each.way == base:
            first.setdefault(each.prompt, each.written.ids)
    return [
        Difference(each.prompt, each.kind, each.way, each.turn, same_start(first[each.prompt], each.written.ids))
        for each in answers
        if each.written.ids != first[each.prompt]
    ]


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """The median and the quartiles; None of nothing."""
    if not values:
        return None
    lower, middle, upper = np.percentile(values, (25, 50, 75))
    return {"median": float(middle), "lower_quartile": float(lower), "upper_quartile": float(upper)}


def ratio_of(answers: Sequence[TimedAnswer], way: str, base: str) -> dict[str, float] | None:
    """How many times as fast as another way one is, prompt by prompt; None if no answer of both was timed."""
    return spread(_ratios(_counted(answers)[0], way, base))


def _figures(answers: Sequence[TimedAnswer], ways: Sequence[str], base: str) -> dict[str, dict[str, Any]]:
    """The figures of each way."""
    wrong = differences(answers, base)
    counted, disturbed = _counted(answers)
    found = {}
    for way in ways:
        own = [each.written for each in answers if each.way == way]
        steps, drafted, accepted = (sum(getattr(each, name) for each in own) for name in _SUMS)
        found[way] = {
            "tokens_per_second": spread([*_by_prompt(counted, way).values()]),
            "ratio": spread(_ratios(counted, way, base)) if way != base else None,
            "tokens_per_step": (steps + accepted) / steps if steps else None,
            "drafted": drafted,
            "accepted": accepted,
            "acceptance": accepted / drafted if drafted else None,
            "answers": len(own),
            "equal": len(own) - sum(each.way == way for each in wrong),
            "timed": sum(each.way == way for each in counted),
            "disturbed": sum(each.way == way for each in disturbed),
        }
    return found


def _counted(answers: Sequence[TimedAnswer]) -> tuple[list[TimedAnswer], list[TimedAnswer]]:
    """Answers whose times count, and those that are long enough and were disturbed.

    An answer counts together with those of the other ways to its prompt in its turn. If all were disturbed, all count.
    """
    long = [each for each in answers if len(each.written.ids) >= TIMED and each.written.seconds > 0]
    disturbed = [each for each in long if each.disturbed]
    places = {(each.prompt, each.turn) for each in disturbed}
    calm = [each for each in long if (each.prompt, each.turn) not in places]
    return calm or long, disturbed


def _by_prompt(answers: Sequence[TimedAnswer], way: str) -> dict[int, float]:
    """Tokens per second of a way by prompt: the median over turns."""
    speeds: dict[int, list[float]] = {}
    for each in answers:
        if each.way == way:
            speeds.setdefault(each.prompt, []).append(each.written.tokens_per_second)
    return {prompt: median(found) for prompt, found in speeds.items()}


def _ratios(answers: Sequence[TimedAnswer], way: str, base: str) -> list[float]:
    """How many times as fast as the base a way is, for each prompt: the median over turns of the ratio in a turn."""
    speeds = {(each.prompt, each.turn, each.way): each.written.tokens_per_second for each in answers}
    ratios: dict[int, list[float]] = {}
    for (prompt, turn, name), speed in speeds.items():
        if name == way and (prompt, turn, base) in speeds:
            ratios.setdefault(prompt, []).append(speed / speeds[prompt, turn, base])
    return [median(found) for found in ratios.values()]
