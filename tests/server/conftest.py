from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed here")

from adaptc.runtime.server.endpoints.parts import ServerParts
from tests.models import attention_bundle
from tests.server.served import parts_of, tiny


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a tiny model with a real graph."""
    path = tmp_path_factory.mktemp("served") / "tiny"
    attention_bundle.write(path)
    return path


@pytest.fixture(scope="package")
def server(bundle: Path) -> Iterator[ServerParts]:
    """A server with the tiny model."""
    parts = parts_of(tiny(bundle))
    yield parts
    parts.models.close()
