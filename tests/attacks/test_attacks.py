"""A few of each attack; the modules say how to run many."""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path

import pytest

from adaptc.compiler.cache import Cache, key_of
from tests.attacks import flips, kills, room
from tests.attacks.outcomes import GOOD, attempt
from tests.attacks.subjects import STORED, Subject, text

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and kills")


def test_flipped_bytes_of_bundles(tmp_path: Path) -> None:
    subjects = [Subject(name, shutil.copytree(STORED / name, tmp_path / name), text) for name in ("gated", "stitched")]
    assert {kind for _, kind in flips.in_bundles(subjects, 25, random.Random(1))} <= GOOD


def test_a_wrong_answer_a_traceback_and_a_hang_are_told() -> None:
    """A negative control: what the attacks call bad is seen."""
    assert attempt(lambda: 1 / 0).kind == "traceback"
    assert attempt(lambda: os._exit(3)).kind == "crash"
    assert attempt(lambda: os.read(os.pipe()[0], 1), seconds=0.2).kind == "hang"
    assert attempt(lambda: [1]).value == [1]


def write(path: Path) -> None:
    path.mkdir()
    (path / "a").write_bytes(bytes(1000))


def test_a_writer_that_is_killed_at_any_of_its_file_operations_leaves_nothing(tmp_path: Path) -> None:
    """The next writer of another entry finds whole entries or none, and removes what was left."""
    cache, key, other = Cache(tmp_path), key_of("killed"), key_of("next")
    killer = kills.Killer(tmp_path)
    sys.addaudithook(killer)

    def work(at: int) -> int:
        killer.at = at
        cache.put("kind", key, write)
        cache.drop("kind", key)
        return at

    outcomes: list[str] = []
    while not outcomes or outcomes[-1] == "killed":
        outcomes.append(attempt(lambda: work(len(outcomes))).kind)
        whole = cache.find("kind", key)
        assert whole is None or [each.name for each in whole.iterdir()] == ["a"]
        cache.put("kind", other, write)
        assert not list((tmp_path / "kind").glob(".*")), f"killed at operation {len(outcomes)}"
        cache.clear()
    assert len(outcomes) > 15
    assert outcomes[-1] == "value"


def test_a_compile_whose_files_may_not_grow_is_refused_in_one_line(tmp_path: Path) -> None:
    """One of these sizes has safetensors, which has its own error for it, meet the limit."""
    assert {ended for _, ended in room.confined(tmp_path, (30, 40), ["pieces cached"])} == {"refused in one line"}
