"""`HistoryLm` with a tokenizer: what it writes after a text."""

from __future__ import annotations

from adaptc.runtime.text.tokenizer import Tokenizer
from tests.models.history_lm import decoder_spec, greedy

SPEC = decoder_spec(vocab=320, max_tokens=100)
PROMPT = "the cat"


def expected(tokenizer: Tokenizer, count: int, prompt: str = PROMPT) -> str:
    return tokenizer.decode(greedy(tokenizer.encode(prompt), count, SPEC))


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
