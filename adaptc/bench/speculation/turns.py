"""The same prompts written in several ways in turns, so that what else the machine does falls on all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from adaptc.bench.figures import DISTURBED
from adaptc.bench.speculation.prompts import Prompt
from adaptc.machine.disturbance import Clock
from adaptc.runtime.progress import SILENT, Progress

_WARM_UP = 8


@dataclass(frozen=True, slots=True)
class WrittenTokens:
    """What was written after a prompt.

    Attributes:
        ids: The tokens, the first of which came with the prompt.
        seconds: Of all tokens after the first.
        drafted: Tokens that were guessed and verified.
        accepted: How many of them were right.
        drafter: What guessed last; None if nothing did.
        elsewhere: CPU seconds of another process that worked for it.
    """

    ids: tuple[int, ...]
    seconds: float
    drafted: int = 0
    accepted: int = 0
    drafter: str | None = None
    elsewhere: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed without the first token; 0 if there is no other."""
        return (len(self.ids) - 1) / self.seconds if self.seconds > 0 else 0.0

    @property
    def steps(self) -> int:
        """Runs of the model after the first token."""
        return max(0, len(self.ids) - 1 - self.accepted)


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """One answer to one prompt.

    Attributes:
        prompt: The prompt's place among all.
        kind: Of text.
        turn: From 0.
        way: How it was written, such as the name of a drafter.
        written: What came.
        others: How many processors others kept busy meanwhile; None if that is not known.
    """

    prompt: int
    kind: str
    turn: int
    way: str
    written: WrittenTokens
    others: float | None = None

    @property
    def disturbed(self) -> bool:
        """Whether others used so much of the machine that its time says little."""
        return (self.others or 0) > DISTURBED


Write = Callable[[Sequence[int], int], WrittenTokens]
"""(prompt, most new tokens) -> what was written."""


def answer_in_turns(
    ways: Mapping[str, Write], prompts: Sequence[Prompt], new_tokens: int, turns: int, progress: Progress = SILENT
) -> list[TimedAnswer]:
    """Have every prompt answered in every way, one after the other, and that again in each turn.

    Each prompt begins with another way. Every way first writes a few tokens that do not count.

    Args:
        ways: By name.
        prompts: At least one.
        new_tokens: The largest number of tokens of an answer, from 2.
        turns: From 1.
        progress: Told of every answer.
    """
    progress.stage("warm up")
    for write in ways.values():
        write(prompts[0].ids, min(_WARM_UP, new_tokens))
    progress.stage("answers")
    names, answers = list(ways), list[TimedAnswer]()
    total = turns * len(prompts) * len(ways)
    progress.step(0, total)
    for turn in range(turns):
        for place, prompt in enumerate(prompts):
            first = (turn + place) % len(names)
            for name in names[first:] + names[:first]:
                answers.append(_answer(name, ways[name], place, prompt, turn, new_tokens))
                progress.step(len(answers), total, f"{prompt.kind}, {name}")
    return answers


def _answer(way: str, write: Write, place: int, prompt: Prompt, turn: int, new_tokens: int) -> TimedAnswer:
    """One answer, and what others did meanwhile."""
    before = Clock.now()
    written = write(prompt.ids, new_tokens)
    after = Clock.now()
    others = after.others_since(before)
    if others is not None:
        others = max(0.0, others - written.elsewhere / (after.wall - before.wall))
    return TimedAnswer(place, prompt.kind, turn, way, written, others)
