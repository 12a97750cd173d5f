"""A GGUF file's tokens as llama.cpp takes them: their kinds, the special ones, and what is put around a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from adaptc.errors import LoadError
from adaptc.sources.gguf.ends import kinds_and_ends
from adaptc.sources.gguf.file import GgufFile
from adaptc.sources.gguf.kinds import Kind
from adaptc.sources.gguf.splits import SPLITS

_KEYS = "tokenizer.ggml."


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A file's tokens and what llama.cpp makes of them.

    Attributes:
        model: `llama` for a sentencepiece vocabulary, `gpt2` for a byte-level one.
        pre: How a byte-level vocabulary splits text, a key of `SPLITS`.
        tokens: Texts by id, each there once.
        kinds: Kinds by id.
        bos: What a text begins with, if anything.
        eos: What ends a text, if anything.
        unknown: What stands for a character that no token spells, if anything.
        pad: What fills a row, if anything.
        ends: Every token that ends an answer; `eos` is the first.
        add_bos: Whether `bos` is put before a text.
        add_eos: Whether `eos` is put after a text.
        space_prefix: Whether a sentencepiece vocabulary reads a text as if a space stood before it.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    kinds: tuple[Kind, ...]
    bos: int | None
    eos: int | None
    unknown: int | None
    pad: int | None
    ends: tuple[int, ...]
    add_bos: bool
    add_eos: bool
    space_prefix: bool

    def text(self, token: int | None) -> str | None:
        """Return a token's text; None for no token."""
        return None if token is None else self.tokens[token]

    def texts_and_kinds(self) -> Iterator[tuple[str, Kind]]:
        """Yield each token's text and kind, by id."""
        return zip(self.tokens, self.kinds, strict=True)


def read_vocabulary(file: GgufFile) -> Vocabulary:
    """Read the tokens of a file and what llama.cpp adds to what the file says of them.

    Raises:
        LoadError: the tokenizer is of a kind that adaptc does not rebuild, or the file contradicts itself.
    """
    model, pre = _model(file)
    sentencepiece = model == "llama"
    tokens = _tokens(file)
    usual = {"bos": 1, "eos": 2, "unknown": 0} if sentencepiece else {"bos": 11, "eos": 11}
    if pre in SPLITS and not SPLITS[pre].usual_bos:
        del usual["bos"]

    def special(name: str) -> int | None:
        return _special(file, name, len(tokens), usual.get(name))

    bos, eos = special("bos"), special("eos")
    kinds, ends = kinds_and_ends(tokens, _stated_kinds(file, len(tokens)), special, eos)
    add_bos = file.get(f"{_KEYS}add_bos_token", bool, sentencepiece or SPLITS[pre].add_bos)
    add_eos = file.get(f"{_KEYS}add_eos_token", bool, False)
    for wanted, token, name in ((add_bos, bos, "bos"), (add_eos, eos, "eos")):
        if wanted and token is None:
            raise LoadError(f"{file.path}: add_{name}_token is true, and the file has no such token")
    return Vocabulary(
        model=model,
        pre=pre,
        tokens=tokens,
        kinds=kinds,
        bos=bos,
        eos=eos,
        unknown=special("unknown"),
        pad=special("padding"),
        ends=ends,
        add_bos=add_bos,
        add_eos=add_eos,
        space_prefix=sentencepiece and file.get(f"{_KEYS}add_space_prefix", bool, True),
    )


def scores_of(file: GgufFile, count: int) -> list[float]:
    """Return the scores of a sentencepiece vocabulary's tokens; zeros where the file has none.

    Raises:
        LoadError: there are too few, or one is no number.
    """
    scores = _numbers(file, "scores", count)
    if scores is None:
        return [0.0] * count
    if any(score != score for score in scores):
        raise LoadError(f"{file.path}: {_KEYS}scores has values that are not numbers; the file is damaged")
    return [float(score) for score in scores]


def _model(file: GgufFile) -> tuple[str, str]:
    model = file.need(f"{_KEYS}model", str)
    pre = file.get(f"{_KEYS}pre", str) or "default"
    if model not in ("gpt2", "llama"):
        raise LoadError(f"{file.path}: {_KEYS}model {model!r} is not supported; there are gpt2, llama")
    if model == "gpt2" and pre not in SPLITS:
        raise LoadError(
            f"{file.path}: {_KEYS}pre {pre!r} cannot be rebuilt exactly; give its Hugging Face folder instead"
        )
    return model, "default" if model == "llama" else pre


def _tokens(file: GgufFile) -> tuple[str, ...]:
    stored = file.need(f"{_KEYS}tokens", list)
    if not stored or not all(isinstance(text, str) for text in stored):
        raise LoadError(f"{file.path}: {_KEYS}tokens is no list of texts; the file is damaged")
    # llama.cpp takes a text up to its first NUL, and gives one that is empty a name.
    texts = (text.partition("\0")[0] for text in stored)
    tokens = tuple(text or f"[EMPTY_{token}]" for token, text in enumerate(texts))
    if len(set(tokens)) < len(tokens):
        [(twice, _)] = Counter(tokens).most_common(1)
        raise LoadError(f"{file.path}: {_KEYS}tokens has {twice!r} twice; the file is damaged")
    return tokens


def _numbers(file: GgufFile, key: str, count: int) -> list[Any] | None:
    """An array with a number for each token; it may be longer, as llama.cpp takes that."""
    values = file.get(f"{_KEYS}{key}", list)
    if values is None:
        return None
    if len(values) < count or not all(isinstance(value, int | float) for value in values):
        raise LoadError(f"{file.path}: {_KEYS}{key} has not a number for each of {count:,} tokens; the file is damaged")
    return list(values[:count])


def _special(file: GgufFile, name: str, count: int, usual: int | None) -> int | None:
    """A special token by its key; one that the vocabulary has not counts as not stated."""
    stated = file.get(f"{_KEYS}{name}_token_id", int)
    return next((token for token in (stated, usual) if token is not None and 0 <= token < count), None)


def _stated_kinds(file: GgufFile, count: int) -> list[Kind]:
    stated = _numbers(file, "token_type", count)
    if stated is None:
        return [Kind.NORMAL] * count
    known = {kind.value: kind for kind in Kind}
    return [known.get(kind, Kind.UNDEFINED) for kind in stated]
