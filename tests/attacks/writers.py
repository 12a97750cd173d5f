"""Several compiles of one spec into one place over one cache, while a reader loads what is there, and all is cleared.

python -m tests.attacks.writers --count 12
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Thread

import torch

from adaptc.compiler.cache import Cache
from tests.attacks.flips import graphs
from tests.attacks.outcomes import Outcome, attempt, report, within
from tests.attacks.subjects import compiled, spec, text

WRITERS = 3


def together(scratch: Path, count: int) -> Iterator[tuple[str, str]]:
    """Let writers begin at the same time, with another state of the cache each round."""
    path, warm = spec(scratch / "spec"), scratch / "warm"
    clean = graphs(compiled(path, scratch / "clean", warm).path)
    chance = random.Random(count)
    answer = attempt(lambda: text(scratch / "clean"))
    assert answer.kind == "value", answer
    for number in range(count):
        place, cache = scratch / f"round{number}" / "bundle", scratch / f"cache{number}"
        shutil.copytree(scratch / "clean", place)
        if number % 3:
            shutil.copytree(warm, cache)
        if number % 3 == 1:
            shutil.rmtree(cache / "bundle")
        found: list[Outcome] = []
        writers = [Thread(target=_write, args=(path, place, cache, found)) for _ in range(WRITERS)]
        clearing = Thread(target=_clear, args=(cache, chance.uniform(0, 4), found))
        for thread in (*writers, clearing):
            thread.start()
        while any(writer.is_alive() for writer in writers):
            read = attempt(partial(text, place))
            right = read.kind == "value" and read.value == answer.value
            yield "reader", "same answer" if right else f"{read.kind}: {read.value}"
        for thread in (*writers, clearing):
            thread.join()
        for each in found:
            right = each.kind == "value" and each.value in (clean, [])
            yield "writer", "made again, the same" if right else f"{each.kind}: {each.value}"
        left = [entry.path.name for entry in Cache(cache).entries() if entry.state != "whole"]
        left += [each.name for each in place.parent.iterdir() if each.name != "bundle"]
        yield "leftovers", f"LEFT: {left}" if left else "same answer"


def _write(path: Path, place: Path, cache: Path, found: list[Outcome]) -> None:
    def work() -> dict[str, str]:
        compiled(path, place, cache)
        return graphs(place)

    found.append(attempt(work))


def _clear(cache: Path, after: float, found: list[Outcome]) -> None:
    def work() -> list[str]:
        time.sleep(after)
        return [entry.key for entry in Cache(cache).clear().left]

    found.append(attempt(work))


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--count", type=int, default=12)
    arguments.add_argument("--seconds", type=float, default=0, help="end after so many; 0: when all is done")
    given = arguments.parse_args()
    torch.set_num_threads(1)  # a fork of a process with threads of torch would wait for them
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = [*within(together(Path(scratch), given.count), given.seconds)]
    return 0 if report("Writers at the same time", outcomes, time.monotonic() - began) else 1


if __name__ == "__main__":
    sys.exit(main())
