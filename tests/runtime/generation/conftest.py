from __future__ import annotations

import pytest

from adaptc.runtime import Session
from adaptc.runtime.text.tokenizer import Tokenizer
from tests.models.history_lm import HistoryLm
from tests.models.sessions import session_of
from tests.models.tiny_tokenizer import byte_level, files
from tests.runtime.generation.text_lm import SPEC, Clock


@pytest.fixture(scope="package")
def tokenizer() -> Tokenizer:
    return Tokenizer(files(byte_level()))


@pytest.fixture
def lm() -> HistoryLm:
    return HistoryLm(SPEC)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def session(lm: HistoryLm, tokenizer: Tokenizer, clock: Clock) -> Session:
    return session_of(lm.engine, SPEC, tokenizer, batch=2, clock=clock)
