"""Texts, pairs of texts and token ids as rows of token ids, cut where that is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptc.runtime.encoding.spec import TextSpec
from adaptc.runtime.errors import RequestError
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.runtime.validation import check_count, check_elements, check_flag, shown

Texts = Any
"""A text, a pair of texts, a list of token ids; or a list of any of these."""

_NEEDED = "a text, or a list of texts or of lists of token ids, is needed"


@dataclass(frozen=True, slots=True)
class Row:
    """One text as its encoder reads it.

    Attributes:
        ids: Token ids, special ones included; at least one.
        types: For each, which of two texts it is of.
    """

    ids: Sequence[int]
    types: Sequence[int]


@dataclass(frozen=True, slots=True)
class TextReader:
    """Makes rows of texts.

    Attributes:
        spec: How texts become inputs.
        tokenizer: For texts; without one they must come as token ids.
    """

    spec: TextSpec
    tokenizer: Tokenizer | None

    def read(
        self, texts: Texts, prompt: str | None = None, *, truncate: bool = False, pairs: bool = False
    ) -> list[Row]:
        """Read texts.

        Args:
            texts: One or several.
            prompt: The name of what is written before each text; None for the model's default.
            truncate: Whether longer texts are cut, as sentence-transformers does, instead of refused.
            pairs: Whether two texts in a tuple are a pair.

        Raises:
            RequestError: something else, nothing at all, an unknown prompt, or a text that is too long.
        """
        cut = check_flag("truncate", truncate)
        before = self._prompt(prompt)
        several = as_list(texts, pairs=pairs)
        rows: list[Row | None] = [self._ids(at, each, cut) for at, each in enumerate(several)]
        open_ = [at for at, row in enumerate(rows) if row is None]
        for at, row in zip(open_, self._texts(open_, [several[at] for at in open_], before, cut), strict=True):
            rows[at] = row
        return [row for row in rows if row is not None]

    def _prompt(self, name: str | None) -> str:
        if name is None:
            name = self.spec.default_prompt
            return self.spec.prompts.get(name, "")
        if not isinstance(name, str) or name not in self.spec.prompts:
            there = f"there are: {', '.join(self.spec.prompts)}" if self.spec.prompts else "the model has none"
            raise RequestError(f"prompt: {shown(name)}; {there}")
        return self.spec.prompts[name]

    def _ids(self, at: int, value: Any, cut: bool) -> Row | None:
        """The row of token ids; None for what is a text."""
        if isinstance(value, (str, tuple)):
            return None
        name = f"texts[{at}]"
        ids = [
            check_count(name, each, most=self.spec.vocab_size - 1, least=0)
            for each in check_elements(name, value, _NEEDED)
        ]
        if not ids:
            raise RequestError(f"{name}: no token; at least one is needed")
        if len(ids) > self.spec.max_tokens:
            self._refuse_longer(name, len(ids), cut)
            ids = ids[: self.spec.max_tokens]
        return Row(ids, [0] * len(ids))

    def _texts(self, places: Sequence[int], texts: Sequence[Any], before: str, cut: bool) -> list[Row]:
        if not texts:
            return []
        if self.tokenizer is None:
            raise RequestError("texts: this bundle has no tokenizer; token ids are needed")
        given = [before + each if isinstance(each, str) else (before + each[0], each[1]) for each in texts]
        rows = []
        for at, encoded in zip(places, self.tokenizer.encode_rows(given, self.spec.max_tokens), strict=True):
            name = f"texts[{at}]"
            if encoded.tokens > self.spec.max_tokens:
                self._refuse_longer(name, encoded.tokens, cut)
            if not encoded.ids:
                raise RequestError(f"{name}: no token; a text that is not empty is needed")
            rows.append(Row(encoded.ids, encoded.types))
        return rows

    def _refuse_longer(self, name: str, tokens: int, cut: bool) -> None:
        """Refuse a text that is too long, unless it may be cut."""
        if not cut:
            raise RequestError(
                f"{name}: {tokens} tokens; at most {self.spec.max_tokens} are possible, and truncate=True cuts the rest"
            )


def as_list(texts: Texts, *, pairs: bool) -> list[Any]:
    """Texts as a list: one text is a list of one.

    Raises:
        RequestError: there is none, or a pair is given where none is taken.
    """
    if is_single(texts, pairs=pairs):
        return [texts]
    found = check_elements("texts", texts, _NEEDED)
    if not found:
        raise RequestError(f"texts: none; {_NEEDED}")
    for at, each in enumerate(found):
        if isinstance(each, tuple) and (not pairs or not _is_pair(each)):
            right = "a text or a pair of texts" if pairs else "a text or a list of token ids"
            raise RequestError(f"texts[{at}]: {shown(each)}; {right} is needed")
    return found


def is_single(texts: Texts, *, pairs: bool = False) -> bool:
    """Whether it is one text, pair or list of token ids."""
    if isinstance(texts, str) or (pairs and _is_pair(texts)):
        return True
    if isinstance(texts, np.ndarray):
        return texts.ndim == 1 and texts.dtype.kind in "iu"
    return (
        isinstance(texts, (list, tuple)) and bool(texts) and all(isinstance(each, (int, np.integer)) for each in texts)
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(each, str) for each in value)
