"""Prompts by kind of text, chosen by a seed so that they fit a bundle, or read from a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

from adaptc.bench.speculation.texts import functions, passages
from adaptc.bench.speculation.wishes import CHATS, CODE, FREE
from adaptc.errors import RequestError
from adaptc.evaluation.text import read_records
from adaptc.runtime.text.templates import Message
from adaptc.runtime.text.tokenizer import Tokenizer

Messages = tuple[Message, ...]

SIZES = (1600, 800, 400, 200, 100)
"""Characters of a given text or of given code: the first that leaves room for the answer is taken."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is answered.

    Attributes:
        kind: Of text, see `KINDS`.
        messages: The user's last; one of them alone is a text like any other for a model without a chat template.
        ids: Tokens of all of them, what the model expects around them included.
    """

    kind: str
    messages: Messages
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """Turns messages into tokens of a bundle.

    Attributes:
        tokenizer: The bundle's.
        chat: Whether it has a chat template.
        room: Tokens that a prompt may have.
    """

    tokenizer: Tokenizer
    chat: bool
    room: int

    def prompt(self, kind: str, messages: Messages) -> Prompt:
        """A prompt, whether it fits or not."""
        if self.chat:
            ids = self.tokenizer.encode(self.tokenizer.render(messages, {}), special=False)
        else:
            ids = self.tokenizer.encode(_plain(messages))
        return Prompt(kind, messages, tuple(ids))


def choose_prompts(kinds: Sequence[str], count: int, seed: int, reader: PromptEncoder) -> list[Prompt]:
    """Prompts of some kinds, other ones with another seed.

    Args:
        kinds: Keys of `KINDS`.
        count: Of each kind, from 1.
        seed: From 0.
        reader: Says which fit.

    Raises:
        RequestError: there are not as many that fit.
    """
    return [prompt for kind in kinds for prompt in _of_kind(kind, count, seed, reader)]


def read_prompts(path: Path, kinds: Sequence[str], count: int | None, reader: PromptEncoder) -> list[Prompt]:
    """Prompts of a JSONL file, with `kind` and either `prompt` or `messages` in each line.

    Args:
        path: The file.
        kinds: The only ones to take; none for all.
        count: The largest number of each kind, from the first; None for all.
        reader: Makes tokens of them.

    Raises:
        RequestError: the file cannot be read, a line is none of these or does not fit, or there is no prompt of a kind.
    """
    found: dict[str, list[Prompt]] = {}
    for line, record in read_records(path):
        where = f"{path}:{line}"
        prompt = reader.prompt(*_of_record(record, where))
        if len(prompt.ids) > reader.room:
            raise RequestError(f"{where}: {len(prompt.ids)} tokens; up to {reader.room} leave room for the answer")
        found.setdefault(prompt.kind, []).append(prompt)
    for kind in kinds or ("prompt",) * (not found):
        if kind not in found:
            there = f"there are: {', '.join(found)}" if found else 'lines with "kind" and "prompt" are right'
            raise RequestError(f"{path}: has no {kind!r}; {there}")
    return [prompt for kind in kinds or found for prompt in found[kind][:count]]


def _of_kind(kind: str, count: int, seed: int, reader: PromptEncoder) -> list[Prompt]:
    fitting: list[Prompt] = []
    for size in SIZES:
        every = KINDS[kind](size)
        Random(f"{seed} {kind}").shuffle(every)
        fitting = []
        for messages in every:
            prompt = reader.prompt(kind, messages)
            fitting += [prompt] if len(prompt.ids) <= reader.room else []
            if len(fitting) == count:
                return fitting
    raise RequestError(
        f"{count} prompts of the kind {kind!r}: {len(fitting)} are there that fit into {reader.room} tokens; fewer "
        "prompts, fewer new tokens or a bundle with a larger max_tokens are right"
    )


def _of_record(record: Mapping[str, Any], where: str) -> tuple[str, Messages]:
    """The kind and the messages of a line."""
    kind, text, turns = (record.get(name) for name in ("kind", "prompt", "messages"))
    if isinstance(text, str) and text and turns is None:
        turns = [{"role": "user", "content": text}]
    if not isinstance(kind, str) or not kind or not isinstance(turns, list) or not turns:
        raise RequestError(f'{where}: "kind" and one of "prompt" and "messages" are needed')
    for turn in turns:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise RequestError(f'{where}: messages: each needs "role" and "content", two texts')
    return kind, tuple(turns)


def _plain(messages: Messages) -> str:
    """Messages for a model that only continues texts."""
    if len(messages) == 1:
        return f"{messages[0]['content']}\n\n"
    said = [f"{str(each['role']).capitalize()}: {each['content']}\n" for each in messages]
    return "".join([*said, "Assistant:"])


def _asked(*contents: str) -> Messages:
    """Messages of a user and an assistant in turns."""
    return tuple({"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(contents))


def _summaries(size: int) -> list[Messages]:
    return [_asked(f"Summarize this text in a few sentences:\n\n{text}") for text in passages(size)]


def _questions(size: int) -> list[Messages]:
    made = []
    for text in passages(size):
        words = re.findall(r"\b[a-z]{5,}\b", text)
        if words:
            word = max((each for each in words if words.count(each) == 1), key=len, default=max(words, key=len))
            made.append(f"Which sentence of this text has the word '{word}'? Quote it word for word, and say what it "
                        f"means.\n\n{text}")  # fmt: skip
    return [_asked(each) for each in made]


def _edits(size: int) -> list[Messages]:
    """Given code is to be repeated with one change, each of three in turn."""
    made = []
    for place, (name, code) in enumerate(functions(size)):
        change = (
            f"Rename the function `{name}` to `new_{name}`.",
            f"Add the comment `# checked` on a line of its own before the `return` of the function `{name}`.",
            f"Give the function `{name}` one more parameter at the end, `verbose=False`.",
        )[place % 3]
        made.append(_asked(f"{change} Write out the whole code and change nothing else.\n\n```python\n{code}\n```"))
    return made


def _of_wishes(wishes: Sequence[str]) -> Callable[[int], list[Messages]]:
    return lambda _: [_asked(wish) for wish in wishes]


KINDS: Mapping[str, Callable[[int], list[Messages]]] = MappingProxyType(
    {
        "summary": _summaries,
        "edit": _edits,
        "question": _questions,
        "code": _of_wishes(CODE),
        "free": _of_wishes(FREE),
        "chat": lambda _: [_asked(*each) for each in CHATS],
    }
)
"""Kinds of text, each with what makes all of its prompts with given texts of up to so many characters."""
