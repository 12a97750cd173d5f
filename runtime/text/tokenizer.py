"""The tokenizer of a bundle: text to ids, ids to text, and a conversation to text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from adaptc.runtime.errors import AdaptcError, BundleError, EngineError, RequestError
from adaptc.runtime.text.detokenize import ByteDecoding, Decoding, WindowDecoding
from adaptc.runtime.text.template_files import config_of, special_tokens, templates_of, text_of
from adaptc.runtime.text.templates import ChatTemplates, Message
from adaptc.runtime.validation import check_count, check_elements, check_flag, shown

if TYPE_CHECKING:
    import tokenizers

_NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})
_OF_VALUES = (ValueError, TypeError, OverflowError)
_SPACE = "\u2581"  # how vocabularies that are not of bytes write a space
_BYTE_NAME = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")  # and how a byte of which no character came
_MOST_ID = (1 << 32) - 1  # the library counts tokens in 32 bits


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A text, or a pair of texts, as an encoder reads it.

    Attributes:
        ids: Its token ids, special ones included, cut to the most that are possible.
        types: For each, 1 for those of the second text of a pair.
        tokens: How many there were before cutting.
    """

    ids: Sequence[int]
    types: Sequence[int]
    tokens: int


class Tokenizer:
    """A tokenizer with its chat templates, if it has any."""

    def __init__(self, files: Mapping[str, bytes], where: str = "tokenizer") -> None:
        """Read a tokenizer.

        Args:
            files: Content by name: tokenizer.json and, if the model has them, tokenizer_config.json,
                chat_template.jinja and, in additional_chat_templates/, templates by name; read when they are needed.
            where: What messages call the folder that the files are from.

        Raises:
            BundleError: a file is missing or cannot be read.
        """
        self._files, self._where = files, where
        self._tokenizer = _load(self._content("tokenizer.json"), self._name("tokenizer.json"))
        self._bytes: dict[int, bytes] = {}
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token: each.content for token, each in added.items() if each.special}
        self._byte_level = type(self._tokenizer.decoder).__name__ == "ByteLevel"

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The ids of a text.

        Args:
            text: Names of special tokens in it count as these tokens.
            special: Add the tokens the model expects around a text, such as BOS.

        Raises:
            RequestError: it is no text, or not valid Unicode.
        """
        if not isinstance(text, str):
            raise RequestError(f"text: {shown(text)}; a str is needed")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"prompt: not valid Unicode: character {error.start} is a lone surrogate; decode from UTF-8"
            ) from error
        special = check_flag("special", special)
        with _library("prompt: the bundle's tokenizer fails on it", RequestError):
            return self._tokenizer.encode(text, add_special_tokens=special).ids

    def encode_rows(self, texts: Sequence[str | tuple[str, str]], most: int) -> list[EncodedRow]:
        """Texts or pairs as rows for an encoder, with the special tokens around them; the library's threads share them.

        Args:
            texts: Names of special tokens in them count as these tokens.
            most: Tokens of a row; longer ones are cut at their end, of a pair the longer text first.

        Raises:
            RequestError: one is not valid Unicode, or special tokens alone are more than `most`.
        """
        try:
            for text in texts:
                "".join(text).encode()
        except UnicodeEncodeError as error:
            raise RequestError("texts: not valid Unicode: a lone surrogate; decode from UTF-8") from error
        with _library("texts: the bundle's tokenizer fails on them", RequestError):
            whole = self._tokenizer.encode_batch(list(texts))
            rows = [EncodedRow(each.ids, each.type_ids, len(each.ids)) for each in whole]
            for at, row in enumerate(rows):
                if row.tokens > most:
                    cut = self._cut(texts[at], most)
                    rows[at] = EncodedRow(cut.ids, cut.type_ids, row.tokens)
        return rows

    def count(self, text: str, special: bool = True) -> int:
        """The number of tokens of a text, see `encode`."""
        return len(self.encode(text, special))

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of ids.

        Args:
            ids: Those that the tokenizer does not know have no text.
            special: Whether special tokens are written out.

        Raises:
            RequestError: they are no ids.
        """
        each = check_elements("ids", ids, "a list of token ids")
        known = [check_count("ids", token, most=_MOST_ID, least=0) for token in each]
        return self._spelled(known, skip_special_tokens=not check_flag("special", special))

    @cached_property
    def longest(self) -> int:
        """The largest number of characters of a token's name, which is at least that of its text; from 1."""
        return max(map(len, self._tokenizer.get_vocab()), default=1)

    def token(self, id_: int) -> str | None:
        """The name of a token in the vocabulary; None for an id that is not in it.

        Raises:
            RequestError: it is no id.
        """
        return self._tokenizer.id_to_token(check_count("id", id_, most=_MOST_ID, least=0))

    def token_bytes(self, id_: int) -> bytes:
        """What a token stands for by itself, a special one by its name; b"" for an id that is not in the vocabulary.

        Raises:
            RequestError: it is no id.
        """
        name = self.token(id_)
        if name is None:
            return b""
        if id_ in self._special:
            return name.encode()
        if self._byte_level:
            return _bytes(name)
        if found := _BYTE_NAME.match(name):
            return bytes([int(found[1], 16)])
        return name.replace(_SPACE, " ").encode()

    def decoding(self) -> Decoding:
        """A new decoding of one sequence, token by token."""
        return ByteDecoding(self._bytes_of) if self._byte_level else WindowDecoding(self._spelled)

    def special_in(self, texts: Iterable[str]) -> dict[int, str]:
        """The special tokens that texts name, with their names: they are left out of an answer's text."""
        joined = "\0".join(texts)
        return {token: name for token, name in self._special.items() if name and name in joined}

    def render(self, messages: Sequence[Message], variables: Mapping[str, Any] = _NO_VARIABLES) -> str:
        """A conversation as a prompt; encode it with `special=False`.

        Args:
            messages: Each with "role" and "content".
            variables: Variables of the chat template and what chooses it, see `Session.chat`.

        Raises:
            RequestError: the model has no chat template, or it refuses the messages, does not use a variable, or takes
                too much time or memory.
            BundleError: a template is broken.
        """
        return self._templates.render(messages, variables)

    @property
    def takes_chats(self) -> bool:
        """Whether the model has a chat template."""
        return bool(self._templates.sources)

    def __repr__(self) -> str:
        """How large it is, and whether it can render chats."""
        chat = "with" if self.takes_chats else "without"
        return f"<Tokenizer of {self._tokenizer.get_vocab_size()} tokens, {chat} chat template>"

    @cached_property
    def _templates(self) -> ChatTemplates:
        tokens = special_tokens(config_of(self._files, self._where))
        return ChatTemplates(templates_of(self._files, self._where), tokens)

    def _cut(self, text: str | tuple[str, str], most: int) -> Any:
        """A text or a pair of at most so many tokens; the library's own way, "longest_first"."""
        parts = [text] if isinstance(text, str) else list(text)
        encoded = [self._tokenizer.encode(part, add_special_tokens=False) for part in parts]
        room = most - self._tokenizer.num_special_tokens_to_add(len(parts) > 1)
        if room < len(parts):
            raise RequestError(f"texts: {most} tokens have no room for a text beside the special ones")
        if len(encoded) == 1:
            encoded[0].truncate(room)
        else:
            short, long = sorted(encoded, key=len)
            kept = min(len(short), room // 2)
            long.truncate(room - kept)
            short.truncate(kept)
        first, second = encoded[0], encoded[1] if len(encoded) > 1 else None
        return self._tokenizer.post_process(first, second)

    def _spelled(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        with _library("ids: the bundle's tokenizer fails on them", RequestError):
            return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def _content(self, name: str) -> bytes:
        try:
            return self._files[name]
        except KeyError:
            raise BundleError(f"{self._name(name)}: missing; compile again") from None

    def _name(self, name: str) -> str:
        return f"{self._where}/{name}"

    def _bytes_of(self, token: int) -> bytes:
        known = self._bytes.get(token)
        if known is None:
            name = None if token in self._special else self._tokenizer.id_to_token(token)
            known = self._bytes[token] = b"" if name is None else _bytes(name)
        return known


def _load(content: bytes, where: str) -> tokenizers.Tokenizer:
    try:
        from tokenizers import Tokenizer as Library
    except ImportError as error:
        raise EngineError("tokenizers: not installed; pip install tokenizers installs it") from error
    text = text_of(content, where)
    with _library(f"{where}: not a tokenizer", BundleError):
        tokenizer = Library.from_str(text)
    # Settings of the training run, if any are left, would cut or pad prompts.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@contextmanager
def _library(what: str, kind: type[AdaptcError]) -> Iterator[None]:
    """Whatever the tokenizers library raises, as an error of `kind`.

    It raises bare `Exception`, and where it panics, as on odd files, what derives from `BaseException` alone. Anything
    else comes from a signal handler of the caller's, such as a limit of time, and is let through.
    """
    try:
        yield
    except BaseException as error:
        panic = type(error).__module__ == "pyo3_runtime"
        if not panic and type(error) is not Exception and not isinstance(error, _OF_VALUES):
            raise
        raise kind(f"{what}: {' '.join(str(error).split())}") from error


def _bytes_by_letter() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones as themselves, the others as letters from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_OF_LETTER = _bytes_by_letter()
"""The byte that each letter of a byte-level vocabulary spells."""


def _bytes(name: str) -> bytes:
    """The bytes a byte-level token stands for; an added token stands for its own text."""
    try:
        return bytes(map(BYTE_OF_LETTER.__getitem__, name))
    except KeyError:
        return name.encode()
