"""The text that passes measure on: the spec's, or our own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adaptc.errors import SpecError
from adaptc.sources.base import Source
from adaptc.sources.package import find_file
from adaptc.spec.schema import CalibrationSpec

OWN = Path(__file__).with_name("calibration.txt")

TOKENS = 8192
"""How many tokens of adaptc's own text are used at most."""


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """A text, and how much of it is used.

    Attributes:
        name: Where it comes from, for the report.
        text: The text.
        tokens: How many tokens of it are used at most.
    """

    name: str
    text: str
    tokens: int

    @property
    def sha256(self) -> str:
        """A hash of the text and the number of tokens, as 64 hex digits."""
        return hashlib.sha256(f"{self.tokens}\0{self.text}".encode()).hexdigest()

    def ids(self, source: Source) -> npt.NDArray[np.int64]:
        """Return the text as a model's token ids, int64[up to `tokens`]."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_buffer(source.tokenizer_files()["tokenizer.json"])
        tokenizer.no_truncation()  # encoders' tokenizers cut every text
        tokenizer.no_padding()
        # A token is seldom longer than 16 characters; the rest of a long text need not be split.
        ids = tokenizer.encode(self.text[: self.tokens * 16], add_special_tokens=False).ids
        return np.array(ids[: self.tokens], np.int64)


def calibration_text(spec: CalibrationSpec | None, base: Path) -> CalibrationText:
    """Read the calibration text.

    Without one in the spec it is our own (`calibration.txt`): encyclopedic prose, news, stories, dialogue and code.
    Text like what the model will be used for is better.

    Raises:
        SpecError: the file cannot be read, or is not text.
    """
    if spec is None:
        return CalibrationText("adaptc's own text", OWN.read_text(encoding="utf-8"), TOKENS)
    path = find_file(spec.text, base)
    try:
        return CalibrationText(spec.text, path.read_text(encoding="utf-8"), spec.tokens)
    except OSError as error:
        raise SpecError(f"calibration.text: {spec.text}: {error.strerror or error}; a text file is right") from error
    except UnicodeDecodeError as error:
        raise SpecError(
            f"calibration.text: {spec.text}: not UTF-8 at byte {error.start}; a text file is right"
        ) from error
