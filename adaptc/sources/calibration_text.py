"""The text that passes measure on: the spec's, or our own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adaptc.errors import SpecError
from adaptc.sources.base import Source
from adaptc.sources.chats import Chat, holds_chats, read_chats
from adaptc.sources.package import find_file
from adaptc.sources.vocabulary import vocabulary
from adaptc.spec.schema import CalibrationSpec

OWN = Path(__file__).with_name("calibration.txt")

TOKENS = 8192
"""How many tokens of adaptc's own text are used at most."""

SELF = "self"
"""The name of the text that a model of the spec writes; a file of this name is `./self`."""

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Prose:
    """A plain text.

    Attributes:
        name: Where it comes from, for the report.
        text: The text.
    """

    name: str
    text: str

    @property
    def content(self) -> bytes:
        """What tells it from other texts."""
        return self.text.encode()

    def ids(self, source: Source, tokens: int) -> Ids:
        """Return its first tokens as a model's ids, int64 [up to `tokens`]."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_buffer(source.tokenizer_files()["tokenizer.json"])
        tokenizer.no_truncation()  # encoders' tokenizers cut every text
        tokenizer.no_padding()
        # A token is seldom longer than 16 characters; the rest of a long text need not be split.
        return np.array(tokenizer.encode(self.text[: tokens * 16], add_special_tokens=False).ids[:tokens], np.int64)


@dataclass(frozen=True, slots=True)
class WrittenChats:
    """Chats that a model wrote; see `chats.py`.

    Attributes:
        name: Where they come from, for the report.
        vocabulary: Hash of the tokens and their ids that they are written in; "" if it is not known.
        chats: They.
    """

    name: str
    vocabulary: str
    chats: tuple[Chat, ...]

    @property
    def content(self) -> bytes:
        """What tells them from other texts."""
        return b"".join(np.array(each.ids, np.int64).tobytes() for each in self.chats)

    def written_for(self, source: Source) -> bool:
        """Whether their token ids are those of a model."""
        return self.vocabulary == vocabulary(source)

    def chats_for(self, source: Source) -> tuple[Chat, ...]:
        """Return the chats, whose token ids are those of a model.

        Raises:
            SpecError: they are written in another vocabulary.
        """
        if not self.written_for(source):
            raise SpecError(
                f"calibration.text: {self.name}: written in another vocabulary than that of {source.origin}"
            )
        return self.chats

    def ids(self, source: Source, tokens: int) -> Ids:
        """Return their first tokens as a model's ids, int64 [up to `tokens`]; of another vocabulary, their texts'."""
        if not self.written_for(source):
            texts = (str(message["content"]) for each in self.chats for message in each.messages)
            return Prose(self.name, "\n\n".join(texts)).ids(source, tokens)
        ids: list[int] = []
        for each in self.chats:
            if len(ids) >= tokens:
                break
            ids += each.ids
        return np.array(ids[:tokens], np.int64)


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """Texts, and how much of them is used.

    Attributes:
        parts: The texts, in order.
        tokens: How many tokens of them are used at most, of each as many.
    """

    parts: tuple[Prose | WrittenChats, ...]
    tokens: int

    @property
    def name(self) -> str:
        """Where they come from, for the report."""
        return ", ".join(each.name for each in self.parts)

    @property
    def size(self) -> int:
        """Bytes of the texts."""
        return sum(len(each.content) for each in self.parts)

    @property
    def sha256(self) -> str:
        """A hash of the texts and the number of tokens, as 64 hex digits."""
        told = b"\0".join(each.content for each in self.parts)
        return hashlib.sha256(f"{self.tokens}\0".encode() + told).hexdigest()

    def renamed(self, names: Sequence[str]) -> CalibrationText:
        """Return the same texts under other names."""
        pairs = zip(self.parts, names, strict=True)
        return replace(self, parts=tuple(replace(part, name=name) for part, name in pairs))

    def ids(self, source: Source) -> Ids:
        """Return the texts as a model's token ids, int64 [up to `tokens`], one after another."""
        found: list[Ids] = []
        left = self.tokens
        # What a short text leaves is for those after it.
        for place, each in enumerate(self.parts):
            found.append(each.ids(source, left // (len(self.parts) - place)))
            left -= len(found[-1])
        return np.concatenate(found)


def prose(name: str, text: str, tokens: int) -> CalibrationText:
    """Return one plain text as what passes measure on."""
    return CalibrationText((Prose(name, text),), tokens)


def calibration_text(spec: CalibrationSpec | None, base: Path) -> CalibrationText:
    """Read the calibration text.

    Without one in the spec it is our own (`calibration.txt`): encyclopedic prose, news, stories, dialogue and code.
    Text like what the model will be used for is better.

    Raises:
        SpecError: a file cannot be read, or is not text; or a model is to write it (`adaptc.writing.calibration`).
        LoadError: a file of chats is damaged.
    """
    if spec is None:
        return prose("adaptc's own text", OWN.read_text(encoding="utf-8"), TOKENS)
    return CalibrationText(tuple(_part(name, base) for name in names_of(spec)), spec.tokens)


def names_of(spec: CalibrationSpec) -> Sequence[str]:
    """Return the names of the spec's texts."""
    return (spec.text,) if isinstance(spec.text, str) else spec.text


def _part(name: str, base: Path) -> Prose | WrittenChats:
    if name == SELF:
        raise SpecError("calibration.text: self: the model writes it for compile and train; here a file is right")
    path = find_file(name, base)
    if holds_chats(path):
        read = read_chats(path)
        return WrittenChats(name, str(read.metadata.get("vocabulary", "")), read.chats)
    try:
        return Prose(name, path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"calibration.text: {name}: {error.strerror or error}; a text file is right") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"calibration.text: {name}: not UTF-8 at byte {error.start}; a text file is right") from error
