from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.models import attention_bundle

if TYPE_CHECKING:
    from adaptc.runtime.server.endpoints.parts import ServerParts

# An environment without the extra `serve` has nothing to test here.
collect_ignore_glob = [] if importlib.util.find_spec("uvicorn") else ["test_*.py"]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a tiny model with a real graph."""
    path = tmp_path_factory.mktemp("served") / "tiny"
    attention_bundle.write(path)
    return path


@pytest.fixture(scope="package")
def server(bundle: Path) -> Iterator[ServerParts]:
    """A server with the tiny model."""
    from tests.server.served import parts_of, tiny

    parts = parts_of(tiny(bundle))
    yield parts
    parts.models.close()
