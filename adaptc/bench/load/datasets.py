"""What is asked: prompts of random words, conversations that share a system prompt, or the lines of a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from adaptc.bench.load.callers import Caller, LoadRequest, Message, user
from adaptc.bench.load.lengths import Lengths, parse_lengths
from adaptc.bench.load.replay_file import read_prompts
from adaptc.bench.load.words import random_text
from adaptc.errors import RequestError
from adaptc.runtime.validation import shown

SHAPES = (
    "random:in=8-159,out=16-96 (prompts of random words), "
    "chat:turns=3,system=200,in=10-60,out=16-96,pause=0 (conversations that share a system prompt), "
    "file:PATH (JSON lines with `prompt` or `messages`)"
)


class Dataset(Protocol):
    """Callers, each a function of its number and the seed alone."""

    @property
    def turns(self) -> int:
        """Requests of a caller."""

    def caller(self, place: int, seed: tuple[int, ...]) -> Caller:
        """The caller of a number, coming at 0."""


@dataclass(frozen=True, slots=True)
class RandomPrompts:
    """Each caller asks once, random words that nobody asked before.

    Attributes:
        prompts: Tokens of a prompt.
        answers: Most tokens of an answer.
    """

    prompts: Lengths
    answers: Lengths

    @property
    def turns(self) -> int:
        return 1

    def caller(self, place: int, seed: tuple[int, ...]) -> Caller:
        random = np.random.default_rng([*seed, place])
        text = random_text(random, self.prompts.draw(random))
        return Caller((LoadRequest((user(text),), self.answers.draw(random)),))


@dataclass(frozen=True, slots=True)
class Conversations:
    """Each caller has a conversation; all begin with the same system prompt, in all runs.

    Attributes:
        turns: Requests of a conversation, at least 1.
        system: Tokens of the system prompt; 0 for none.
        prompts: Tokens that a user says in a turn.
        answers: Most tokens of an answer.
        pause: Seconds between an answer and the next turn.
    """

    turns: int
    system: int
    prompts: Lengths
    answers: Lengths
    pause: float

    def caller(self, place: int, seed: tuple[int, ...]) -> Caller:
        random = np.random.default_rng([*seed, place])
        requests = []
        for turn in range(self.turns):
            said: list[Message] = []
            if turn == 0 and self.system:
                shared = random_text(np.random.default_rng(0), self.system)
                said.append({"role": "system", "content": shared})
            said.append(user(random_text(random, self.prompts.draw(random))))
            requests.append(LoadRequest(tuple(said), self.answers.draw(random), 0.0, self.pause if turn else 0.0))
        return Caller(tuple(requests))


@dataclass(frozen=True, slots=True)
class FilePrompts:
    """The lines of a file in their order, from the first again after the last.

    Attributes:
        requests: At least one.
    """

    requests: tuple[LoadRequest, ...]

    @property
    def turns(self) -> int:
        return 1

    def caller(self, place: int, seed: tuple[int, ...]) -> Caller:
        return Caller((self.requests[place % len(self.requests)],))


def parse_dataset(text: str) -> Dataset:
    """What `--dataset` says.

    Raises:
        RequestError: it is none of `SHAPES`, or its file cannot be read.
    """
    shape, _, rest = text.partition(":")
    if shape == "file" and rest:
        return FilePrompts(read_prompts(Path(rest)))
    if shape == "random":
        options = _options(rest, {"in": "8-159", "out": "16-96"})
        return RandomPrompts(_lengths(options, "in"), _lengths(options, "out"))
    if shape == "chat":
        options = _options(rest, {"turns": "3", "system": "200", "in": "10-60", "out": "16-96", "pause": "0"})
        turns, system = _number(options, "turns", int, 1), _number(options, "system", int, 0)
        pause = _number(options, "pause", float, 0)
        return Conversations(int(turns), int(system), _lengths(options, "in"), _lengths(options, "out"), pause)
    raise RequestError(f"--dataset: {shown(text)}; one of these is needed: {SHAPES}")


def _options(text: str, known: dict[str, str]) -> dict[str, str]:
    """The options of a shape, defaults among them."""
    options = dict(known)
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or name not in known:
            raise RequestError(f"--dataset: {shown(part)}; there are: {', '.join(f'{each}=' for each in known)}")
        options[name] = value
    return options


def _lengths(options: dict[str, str], name: str) -> Lengths:
    return parse_lengths(f"--dataset: {name}", options[name])


def _number(options: dict[str, str], name: str, kind: Callable[[str], float], least: float) -> float:
    try:
        value = kind(options[name])
    except ValueError:
        value = -1.0
    if not least <= value <= 1e6:
        raise RequestError(f"--dataset: {name}: {shown(options[name])}; a number from {least:g} is needed")
    return value
