"""Loading a bundle again and again takes no memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adaptc.runtime.bundle.folder import Bundle
from tests.gpu.leaks import load_often

pytestmark = pytest.mark.gpu


def test_loads_give_back_what_they_took(built: Callable[[str], Bundle]) -> None:
    found = load_often(built("tiny"), most=200, seconds=60)
    assert found["loads"] >= 10
    assert found["lost_gpu_bytes"] <= 2 << 20
    assert found["grown_host_bytes"] < 64 << 20
