"""Compile where files may not grow beyond a size, as on a disk that is full at that moment.

python -m tests.attacks.room --step 4
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from adaptc.compiler.cache import Cache
from tests.attacks.flips import graphs
from tests.attacks.outcomes import attempt, report
from tests.attacks.subjects import compiled, spec

STARTS = {"nothing cached": None, "pieces cached": ("lowered", "bundle"), "program cached": ("bundle",)}
"""What is in the cache when a compile begins, as the kinds of entries that are not."""


def confined(scratch: Path, sizes: Iterable[int], starts: Iterable[str] = STARTS) -> Iterator[tuple[str, str]]:
    """Compile with each largest size of a file, in KB, from each state of the cache."""
    path, place, cache, warm = spec(scratch / "spec"), scratch / "out" / "bundle", scratch / "cache", scratch / "warm"
    clean = graphs(compiled(path, scratch / "clean", warm).path)
    old = shutil.copytree(scratch / "clean", scratch / "old")
    (old / "marker").write_text("older")
    for size in sizes:
        for start in starts:
            shutil.rmtree(place.parent, ignore_errors=True)
            shutil.rmtree(cache, ignore_errors=True)
            shutil.copytree(old, place)
            if (missing := STARTS[start]) is not None:
                shutil.copytree(warm, cache)
                for kind in missing:
                    shutil.rmtree(cache / kind)

            def work(bytes_: int = size * 1024) -> dict[str, str]:
                resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))  # Python ignores the signal of it
                return graphs(compiled(path, place, cache).path)

            ended = attempt(work)
            kept = "clean" if ended.kind == "value" else "old"
            left = [each.path.name for each in Cache(cache).entries() if each.state != "whole"]
            left += [each.name for each in place.parent.iterdir() if each != place]
            if ended.kind == "value" and ended.value != clean:
                yield start, "WRONG"
            elif {each.name for each in place.iterdir()} != {each.name for each in (scratch / kept).iterdir()}:
                yield start, f"LOST: {sorted(each.name for each in place.iterdir())}"
            elif left:
                yield start, f"LEFT: {left}"
            else:
                yield start, "made again, the same" if ended.kind == "value" else ended.kind


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--step", type=int, default=4, help="KB between the sizes")
    arguments.add_argument("--most", type=int, default=120, help="KB that are enough")
    given = arguments.parse_args()
    torch.set_num_threads(1)  # a fork of a process with threads of torch would wait for them
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = [*confined(Path(scratch), range(1, given.most, given.step))]
    return 0 if report("Files that may not grow", outcomes, time.monotonic() - began) else 1


if __name__ == "__main__":
    sys.exit(main())
