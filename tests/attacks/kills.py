"""Kill a compile in all its stages, at a file operation or at any moment, with an older bundle in its place.

python -m tests.attacks.kills --count 500
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from adaptc.compiler.cache import Cache
from adaptc.runtime import BundleError, open_bundle
from tests.attacks.flips import graphs
from tests.attacks.outcomes import Outcome, attempt, report, within
from tests.attacks.subjects import compiled, spec

OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.utime", "shutil.rmtree")
STARTS = {"nothing cached": 1, "pieces cached": 3, "program cached": 8, "bundle cached": 8}
"""What is in the cache when a compile begins, and how often: one from nothing takes ten times as long as the others."""

COMPLETED = 5
"""One in so many kills is followed by a compile that must succeed, give the same, and leave nothing."""


class Killer:
    """An audit hook that ends its process at one of its own file operations."""

    def __init__(self, root: Path) -> None:
        self.seen, self.at = 0, -1
        self._root = str(root)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.at < 0 or event not in OPERATIONS or not str(arguments[0]).startswith(self._root):
            return
        self.seen += 1
        if self.seen > self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(scratch: Path, count: int, chance: random.Random) -> Iterator[tuple[str, str]]:
    """Kill compiles; outcomes by what was in the cache when they began."""
    path, place, cache = spec(scratch / "spec"), scratch / "out" / "bundle", scratch / "cache"
    clean = graphs(compiled(path, scratch / "clean", scratch / "warm").path)
    old = shutil.copytree(scratch / "clean", scratch / "old")
    (old / "marker").write_text("older")
    killer = Killer(scratch)
    sys.addaudithook(killer)
    lengths = {start: _length(start, path, scratch, killer) for start in STARTS}
    for number in range(count):
        [start] = chance.choices([*STARTS], [*STARTS.values()])
        _prepare(start, scratch)
        if not place.exists():
            shutil.copytree(old, place)
        found = _one(path, place, cache, killer, lengths[start], chance)
        kind = "ended before the kill" if found.kind == "value" else found.kind
        state = _state(place, clean)
        yield start, kind
        yield "the bundle's place", "same answer" if state in ("older", "newer") else f"LOST: {state}"
        if number % COMPLETED == 0:
            yield "the compile after it", _completed(path, place, cache, clean)
        if state == "newer":
            shutil.rmtree(place, ignore_errors=True)


def _one(
    path: Path, place: Path, cache: Path, killer: Killer, length: tuple[int, float], chance: random.Random
) -> Outcome:
    operations, seconds = length
    by_time = chance.random() < 0.3
    at, after = chance.randrange(operations), chance.uniform(0, seconds)

    def work() -> None:
        killer.at = -1 if by_time else at
        compiled(path, place, cache)

    def kill(child: int) -> None:
        if by_time:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)

    return attempt(work, kill=kill)


def _length(start: str, path: Path, scratch: Path, killer: Killer) -> tuple[int, float]:
    """File operations and seconds of a compile that is not killed."""
    _prepare(start, scratch)
    began = time.monotonic()

    def work() -> int:
        killer.at = 1 << 60
        compiled(path, scratch / "measured", scratch / "cache")
        return killer.seen

    found = attempt(work)
    assert found.kind == "value", found
    shutil.rmtree(scratch / "measured")
    return found.value, time.monotonic() - began


def _prepare(start: str, scratch: Path) -> None:
    """The cache that a compile begins with."""
    cache = scratch / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    if start != "nothing cached":
        shutil.copytree(scratch / "warm", cache)
    for kind in {"pieces cached": ("bundle", "lowered"), "program cached": ("bundle",)}.get(start, ()):
        shutil.rmtree(cache / kind)


def _state(place: Path, clean: dict[str, str]) -> str:
    """What stands in the bundle's place."""
    if (place / "marker").exists():
        (place / "marker").unlink()
        found = graphs(place)
        (place / "marker").write_text("older")
        return "older" if found == clean else "damaged"
    try:
        open_bundle(place)
    except BundleError as error:
        return str(error)
    return "newer" if graphs(place) == clean else "another"


def _completed(path: Path, place: Path, cache: Path, clean: dict[str, str]) -> str:
    """What the next compile gives, and whether anything is left of the one that was killed."""
    found = attempt(lambda: graphs(compiled(path, place, cache).path))
    if found.kind != "value":
        return found.kind
    left = [entry for entry in Cache(cache).entries() if entry.state != "whole"]
    left_beside = [each.name for each in place.parent.iterdir() if each.name != place.name]
    if left or left_beside:
        return f"LEFTOVERS: {[entry.path.name for entry in left]} {left_beside}"
    return "made again, the same" if found.value == clean else "ANOTHER BUNDLE"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--count", type=int, default=500)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--seconds", type=float, default=0, help="end after so many; 0: when all is done")
    given = arguments.parse_args()
    torch.set_num_threads(1)  # a fork of a process with threads of torch would wait for them
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        attacks = killed(Path(scratch), given.count, random.Random(given.seed))
        outcomes = [*within(attacks, given.seconds)]
    return 0 if report("Killed compiles", outcomes, time.monotonic() - began) else 1


if __name__ == "__main__":
    sys.exit(main())
