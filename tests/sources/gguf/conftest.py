"""What tests of GGUF files share: one process of llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.models.llama_cpp import LlamaCpp


@pytest.fixture(scope="package")
def llama_cpp() -> Iterator[LlamaCpp]:
    running = LlamaCpp()
    yield running
    running.close()
