"""Flip one byte of a bundle and load it; flip one byte of entries of the cache and compile.

python -m tests.attacks.flips --count 1000
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from adaptc.compiler.cache import Cache
from tests.attacks.outcomes import attempt, report, within
from tests.attacks.subjects import Subject, bundles, compiled, spec

PER_COMPILE = 10
"""Flips in the cache before a compile, each in another entry: a compile takes seconds, and a load a fraction of one."""


def flip(path: Path, chance: random.Random) -> bytes:
    """Change one byte of a file, by one bit or altogether; returns what was there."""
    before = path.read_bytes()
    content, at = bytearray(before), chance.randrange(len(before))
    content[at] ^= 1 << chance.randrange(8) if chance.random() < 0.7 else chance.randrange(1, 256)
    path.write_bytes(content)
    return before


def in_bundles(subjects: list[Subject], count: int, chance: random.Random) -> Iterator[tuple[str, str]]:
    """Flip a byte of each file of each bundle in turn, load it, ask, and put the byte back."""
    answers = {each.name: attempt(partial(each.ask, each.path)) for each in subjects}
    assert all(answer.kind == "value" for answer in answers.values()), answers
    files = [(each, file) for each in subjects for file in sorted(each.path.rglob("*")) if file.is_file()]
    for number in range(count):
        subject, file = files[number % len(files)]
        before = flip(file, chance)
        found = attempt(partial(subject.ask, subject.path))
        file.write_bytes(before)
        if found.kind == "value":
            kind = "same answer" if found.value == answers[subject.name].value else "WRONG ANSWER"
        else:
            kind = found.kind
            if kind != "refused in one line":
                sys.stderr.write(f"{subject.name}/{file.relative_to(subject.path)}: {kind}: {found.value}\n")
        yield f"bundle, {subject.name}", kind


def in_cache(scratch: Path, count: int, chance: random.Random) -> Iterator[tuple[str, str]]:
    """Flip bytes of entries of all stages, compile, and compare the bundle with that of a clean compile."""
    path, cache = spec(scratch / "spec"), scratch / "cache"
    clean = graphs(compiled(path, scratch / "clean", cache).path)
    for _ in range(0, count, PER_COMPILE):
        kinds: dict[str, list[Path]] = {}
        for entry in Cache(cache).entries():
            kinds.setdefault(entry.kind, []).append(entry.path)
        flipped = []
        # Without the bundle's own entry nothing else is read, and without the program only pieces are.
        for kind in ("bundle", "lowered", *chance.choices(sorted({*kinds} - {"bundle", "lowered"}), k=PER_COMPILE - 2)):
            damaged = chance.choice(kinds[kind])
            flip(chance.choice([file for file in sorted(damaged.rglob("*")) if file.is_file()]), chance)
            flipped.append(kind)
        found = attempt(lambda: graphs(compiled(path, scratch / "again", cache).path))
        kind = found.kind
        if kind == "value":
            kind = "made again, the same" if found.value == clean else "ANOTHER BUNDLE"
        else:
            sys.stderr.write(f"cache {flipped}: {kind}: {found.value}\n")
        shutil.rmtree(scratch / "again", ignore_errors=True)
        yield from ((f"cache, {stage}", kind) for stage in flipped)


def graphs(bundle: Path) -> dict[str, str]:
    """The sha256 of everything of a bundle but the times that its compile took."""
    files = (path for path in sorted(bundle.rglob("*")) if path.is_file())
    named = {path.relative_to(bundle).as_posix(): path for path in files}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in named.items()
        if name.partition(".")[0] not in TIMED
    }


TIMED = ("manifest", "report")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--count", type=int, default=1000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--seconds", type=float, default=0, help="end after so many; 0: when all is done")
    given = arguments.parse_args()
    torch.set_num_threads(1)  # a fork of a process with threads of torch would wait for them
    began, chance = time.monotonic(), random.Random(given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        half = given.count // 2
        limit = given.seconds / 2
        outcomes = [*within(in_bundles(bundles(Path(scratch) / "bundles"), half, chance), limit)]
        outcomes += within(in_cache(Path(scratch) / "compile", given.count - half, chance), limit)
    return 0 if report("Flipped bytes", outcomes, time.monotonic() - began) else 1


if __name__ == "__main__":
    sys.exit(main())
