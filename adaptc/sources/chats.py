"""Chats that a model wrote itself: the file of JSON lines that holds them, and rows of them to train on.

The first line says what wrote them, each further line is one chat. `adaptc write-data` writes such files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.errors import LoadError, one_line

VERSION = 1
"""Of the file's form."""

_HEAD = {"adaptc": "chats", "version": VERSION}
_KEYS = frozenset({"ids", "answers", "kind", "messages"})


@dataclass(frozen=True, slots=True)
class Chat:
    """One chat as a model reads it.

    Attributes:
        ids: Token ids of the rendered chat, those of the template included.
        answers: Half-open spans of `ids`, in order, that assistant turns cover; the token that ends a turn is of it.
        kind: What kind of task it is, e.g. `letters`.
        messages: Its turns, each with "role" and "content".
    """

    ids: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]
    kind: str
    messages: tuple[Mapping[str, str], ...]

    @property
    def answer_tokens(self) -> int:
        """How many tokens are of answers."""
        return sum(end - start for start, end in self.answers)


@dataclass(frozen=True, slots=True)
class Chats:
    """The content of a file of chats.

    Attributes:
        metadata: What wrote them: `model`, `sha256`, `vocabulary`, `recipe` and more.
        chats: They, in the order in which they were written.
    """

    metadata: Mapping[str, Any]
    chats: tuple[Chat, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all chats."""
        return sum(len(each.ids) for each in self.chats)

    @property
    def answer_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(each.answer_tokens for each in self.chats)


def holds_chats(path: Path) -> bool:
    """Return whether a file begins as a file of chats does; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline(1 << 20))
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and first.get("adaptc") == "chats"


def read_chats(path: Path) -> Chats:
    """Read a file of chats.

    A last line without its end is what a killed writer left, and is dropped.

    Raises:
        LoadError: the file cannot be read, or a line is not what it should be.
    """
    whole, _, _torn = _content(path).rpartition(b"\n")
    lines = whole.split(b"\n")
    metadata = _metadata(f"{path}:1", lines[0])
    return Chats(metadata, tuple(_chat(f"{path}:{at}", line) for at, line in enumerate(lines[1:], 2)))


def begin_chats(path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a file of no chats yet, in the place of one that is there.

    Args:
        path: The file.
        metadata: What writes them; all of it can be written as JSON.

    Raises:
        LoadError: it cannot be written.
    """
    line = json.dumps({**_HEAD, **metadata}, ensure_ascii=False)
    try:
        path.write_text(f"{line}\n", encoding="utf-8")
    except OSError as error:
        raise LoadError(f"{path}: cannot be written: {error.strerror}") from error


def append_chats(path: Path, chats: Sequence[Chat]) -> None:
    """Write more chats at the end of a file, after its last whole line.

    Args:
        path: A file that `begin_chats` wrote.
        chats: They.

    Raises:
        LoadError: it cannot be read or written.
    """
    lines = (json.dumps(_line(each), ensure_ascii=False) for each in chats)
    added = "".join(f"{line}\n" for line in lines).encode()
    try:
        with path.open("r+b") as file:
            file.seek(_whole_bytes(path))
            file.truncate()
            file.write(added)
    except OSError as error:
        raise LoadError(f"{path}: cannot be written: {error.strerror}") from error


def replace_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a file's first line anew; the chats stay as they are.

    Args:
        path: A file that `begin_chats` wrote.
        metadata: As for `begin_chats`.

    Raises:
        LoadError: it cannot be read or written.
    """
    _, _, rest = _content(path).partition(b"\n")
    line = json.dumps({**_HEAD, **metadata}, ensure_ascii=False).encode()
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(line + b"\n" + rest)
        partial.replace(path)
    except OSError as error:
        raise LoadError(f"{path}: cannot be written: {error.strerror}") from error


def pack(chats: Sequence[Chat], window: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Lay chats into rows of one length, long ones first, each into the first row that has room.

    Every row begins with a chat, so position 0 is a template's beginning, as it is at run time. A chat that is longer
    than a row is cut at the row's end; where no chat fits, the row's last id is repeated.

    Args:
        chats: At least one, each of at least one token.
        window: Tokens of a row, from 1.

    Returns:
        int64 [rows, window], and bool [rows, window]: whether the token at a position is of an answer, that is whether
        its prediction counts.

    Raises:
        LoadError: there is no chat.
    """
    if not chats:
        raise LoadError("no chats to train on; adaptc write-data writes some")
    places = _places(chats, window)
    rows = 1 + int(places[:, 0].max())
    ids, mask = np.empty((rows, window), np.int64), np.zeros((rows, window), np.bool_)
    # In the order of their positions, so that what is repeated at a row's end is its last chat's.
    for chat in np.argsort(places[:, 1], kind="stable").tolist():
        row, at = places[chat].tolist()
        end = min(at + len(chats[chat].ids), window)
        ids[row, at:end] = chats[chat].ids[: end - at]
        ids[row, end:] = ids[row, end - 1]
        for first, last in chats[chat].answers:
            mask[row, min(at + first, end) : min(at + last, end)] = True
    return ids, mask


def rows_of(chats: Sequence[Chat], window: int) -> npt.NDArray[np.int64]:
    """Return the row of each chat in what `pack` gives: int64 [chats]."""
    return _places(chats, window)[:, 0]


def _places(chats: Sequence[Chat], window: int) -> npt.NDArray[np.int64]:
    """Row and position of each chat, int64 [chats, 2]: long ones first, each into the first row that has room."""
    lengths = np.array([min(len(each.ids), window) for each in chats], np.int64)
    room = np.full(len(chats), window)
    places = np.zeros((len(chats), 2), np.int64)
    for chat in np.argsort(-lengths, kind="stable").tolist():
        row = int(np.argmax(room >= lengths[chat]))
        places[chat] = row, window - int(room[row])
        room[row] -= lengths[chat]
    return places


def _line(chat: Chat) -> dict[str, Any]:
    spans = [list(each) for each in chat.answers]
    return {
        "ids": list(chat.ids),
        "answers": spans,
        "kind": chat.kind,
        "messages": [dict(each) for each in chat.messages],
    }


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror}; a file of chats is right") from error


def _whole_bytes(path: Path) -> int:
    """The bytes of a file up to the end of its last whole line; it is read from its end."""
    with path.open("rb") as file:
        at = file.seek(0, 2)
        while at > 0:
            start = max(0, at - (1 << 16))
            file.seek(start)
            found = file.read(at - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            at = start
    raise LoadError(f"{path}: no whole line; a file of chats is right")


def _object(where: str, line: bytes) -> dict[str, Any]:
    try:
        read = json.loads(line)
    except ValueError as error:
        raise LoadError(f"{where}: not JSON: {one_line(error)}; an object on each line is right") from error
    if not isinstance(read, dict):
        raise LoadError(f"{where}: not an object; an object on each line is right")
    return read


def _metadata(where: str, line: bytes) -> dict[str, Any]:
    read = _object(where, line)
    if read.get("adaptc") != "chats":
        raise LoadError(f'{where}: no {{"adaptc": "chats"}}; a file that adaptc write-data wrote is right')
    if read.get("version") != VERSION:
        raise LoadError(f"{where}: version {one_line(read.get('version'))}; this adaptc reads version {VERSION}")
    return {name: value for name, value in read.items() if name not in _HEAD}


def _chat(where: str, line: bytes) -> Chat:
    read = _object(where, line)
    if read.keys() != _KEYS:
        raise LoadError(f"{where}: keys {', '.join(map(one_line, read))}; {', '.join(sorted(_KEYS))} are right")
    ids, kind = read["ids"], read["kind"]
    if not isinstance(ids, list) or not ids or not all(type(each) is int and each >= 0 for each in ids):
        raise LoadError(f"{where}: ids: a list of token ids is right")
    if not isinstance(kind, str):
        raise LoadError(f"{where}: kind: a text is right")
    return Chat(tuple(ids), tuple(_spans(where, read["answers"], len(ids))), kind, _messages(where, read["messages"]))


def _spans(where: str, answers: object, length: int) -> Iterator[tuple[int, int]]:
    last = 0
    spans: list[Any] = answers if isinstance(answers, list) else [None]
    for each in spans:
        right = isinstance(each, list) and len(each) == 2 and all(type(at) is int for at in each)
        if not right or not last <= each[0] < each[1] <= length:
            raise LoadError(f"{where}: answers: {one_line(each)}; spans [start, end] of ids, in order, are right")
        last = each[1]
        yield each[0], each[1]


def _messages(where: str, messages: object) -> tuple[Mapping[str, str], ...]:
    read: list[Any] = messages if isinstance(messages, list) else [None]
    for each in read:
        right = isinstance(each, dict) and each.keys() == {"role", "content"}
        if not right or not all(isinstance(value, str) for value in each.values()):
            raise LoadError(f"{where}: messages: objects with `role` and `content`, both texts, are right")
    return tuple(read)
