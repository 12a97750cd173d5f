"""What is not kept of what a model writes: loops, refusals, other templates' marks, and what was asked before."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from adaptc.evaluation.answers import repetition

GRAM, MOST_REPEATED = 8, 0.2
"""A text loops if more than this share of its runs of eight tokens stood in it before."""

SHORT_GRAM, MOST_SHORT = 3, 0.6
"""The same for runs of three, of which tables and code repeat many."""

NEAR = 0.7
"""Requests that share this part of their runs of three words are the same."""

HASHES, BANDS = 32, 8
_PRIME = (1 << 61) - 1

_REFUSAL = re.compile(
    r"^\W*(i\W?m (really |very )?sorry|sorry\b|i apologi[sz]e|as an ai\b|as a language model|"
    r"i('m| am) (unable|not able)|"
    r"i (cannot|can't|can not|won't) (help|assist|provide|fulfil|answer|do|write|create|generate|engage)|"
    r"i('m| am) (just )?an? (ai|language model)|unfortunately, i (cannot|can't|am))",
    re.IGNORECASE,
)
_MARKS = re.compile(
    r"<\|[a-z_]{2,24}\|>|<(start|end)_of_turn>|\[/?INST\]|<<SYS>>|</?s>|^### ?(instruction|response|human|assistant)\b|"
    r"^(human|user|assistant|ai) ?:|\ufffd",
    re.IGNORECASE | re.MULTILINE,
)
_NUMBERED = re.compile(r"^\s{0,3}(?:\*\*)?\d{1,2}[.)](?:\*\*)?\s+(.+)$")
_LEAD = re.compile(
    r"^(sure|certainly|of course|absolutely|here (is|are)|okay|below is)\b[^\n]*[:!.]\s*\n+", re.IGNORECASE
)


def loops(ids: Sequence[int]) -> bool:
    """Return whether a text repeats itself."""
    for gram, most in ((GRAM, MOST_REPEATED), (SHORT_GRAM, MOST_SHORT)):
        again, runs = repetition(ids, gram)
        if runs >= 2 * gram and again > most * runs:
            return True
    return False


def refuses(text: str) -> bool:
    """Return whether an answer begins as a refusal does."""
    return _REFUSAL.match(text) is not None


def has_marks(text: str) -> bool:
    """Return whether marks of a chat template stand in a text, or bytes that are no text."""
    return _MARKS.search(text) is not None


def listed(text: str) -> list[str]:
    """Return the entries of a numbered list; one that is cut off at the text's end among them."""
    found = (_NUMBERED.match(line) for line in text.splitlines())
    return [each[1].replace("**", "").strip() for each in found if each is not None]


def bare(text: str) -> str:
    """Return what was written without a first line that only announces it, and without quotation marks around it."""
    text = _LEAD.sub("", text.strip()).strip()
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] == '"' and '"' not in text[1:-1] else text


def fit_request(text: str) -> bool:
    """Return whether a text can be a user's message: of a fair length, without marks, and no answer."""
    return 8 <= len(text) <= 3000 and not has_marks(text) and not refuses(text)


class Requests:
    """Requests that were made, and texts that none may be like."""

    def __init__(self, without: Iterable[str] = ()) -> None:
        """Begin with no request.

        Args:
            without: Texts of which no request may hold a run of `RUN` words, or all if they are fewer; texts of fewer
                than `LEAST` words do not count.
        """
        random = np.random.default_rng(1)
        self._factors = random.integers(1, _PRIME, HASHES, dtype=np.uint64)
        self._shifts = random.integers(0, _PRIME, HASHES, dtype=np.uint64)
        self._bands: dict[tuple[int, bytes], int] = {}
        self._signatures: list[np.ndarray] = []
        self._without = Exclusion(without)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._signatures)

    def excludes(self, text: str) -> bool:
        """Return whether a request is like one of the texts that none may be like."""
        return self._without.meets(text)

    def add(self, text: str) -> bool:
        """Add a request; return False, and leave it out, if one nearly like it was made."""
        signature = self._signature(text)
        keys = [(band, part.tobytes()) for band, part in enumerate(np.split(signature, BANDS))]
        for key in keys:
            found = self._bands.get(key)
            if found is not None and np.mean(self._signatures[found] == signature) >= NEAR:
                return False
        self._bands |= dict.fromkeys(keys, len(self._signatures))
        self._signatures.append(signature)
        return True

    def _signature(self, text: str) -> np.ndarray:
        """MinHash of the runs of three words (Broder 1997): uint64 [`HASHES`]."""
        words = _words(text)
        runs = {" ".join(words[at : at + 3]) for at in range(max(1, len(words) - 2))}
        hashes = np.array([zlib.crc32(run.encode()) for run in runs], np.uint64)
        with np.errstate(over="ignore"):
            mixed = hashes[:, None] * self._factors + self._shifts
        return np.asarray((mixed >> np.uint64(16)).min(0))


class Exclusion:
    """Texts of an evaluation: what shares a run of words with one of them is not written."""

    RUN, LEAST = 8, 4

    def __init__(self, texts: Iterable[str]) -> None:
        """Take texts; those of fewer than `LEAST` words are too common to exclude anything."""
        self._runs: set[str] = set()
        self._lengths: set[int] = set()
        for text in texts:
            words = _words(text)
            if len(words) >= self.LEAST:
                length = min(self.RUN, len(words))
                self._lengths.add(length)
                self._runs.update(" ".join(words[at : at + length]) for at in range(len(words) - length + 1))

    def meets(self, text: str) -> bool:
        """Return whether a text shares a run."""
        words = _words(text)
        return any(
            " ".join(words[at : at + length]) in self._runs
            for length in self._lengths
            for at in range(len(words) - length + 1)
        )


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.casefold()).split()
