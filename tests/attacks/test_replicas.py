"""Two real replicas on Ray Serve, one of which is killed; the module says how to do more, with figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import attention_bundle

pytest.importorskip("ray.serve", reason="the extra ray is not installed here")


def test_only_what_had_sent_text_fails_when_a_replica_is_killed(tmp_path: Path) -> None:
    from tests.attacks import replicas

    attention_bundle.write(tmp_path / "bundle")
    options = ["--only-kill", "--seconds", "12", "--tokens", "60", "--copies", "24"]
    assert replicas.main([str(tmp_path / "bundle"), *options]) == 0
