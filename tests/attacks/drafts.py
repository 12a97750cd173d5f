"""Answer many prompts without drafts and with each drafter, alone and in batches: every answer has to be the same.

python -m tests.attacks.drafts bundle --count 1000
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from adaptc.bench.speculation.texts import functions, passages
from adaptc.runtime import Result, Session, load
from tests.models.verifying_lm import FreeDrafts

SIZES = (120, 300, 700)


def prompts(session: Session, count: int, chance: Random) -> list[list[int]]:
    """Texts to go on with, texts to repeat and code to change, in turn."""
    assert session.tokenizer is not None
    made = []
    texts = {size: passages(size) for size in SIZES}
    code = {size: [content for _, content in functions(size)] for size in SIZES}
    for number in range(count):
        size = SIZES[number % len(SIZES)]
        text = chance.choice((code if number % 2 else texts)[size])
        start = chance.randrange(max(1, len(text) // 3))
        text = text[start:]
        if number % 3 == 1:
            text = f"Write this again, word for word:\n\n{text}\n\nHere it is again:\n\n{text[:20]}"
        made.append(session.tokenizer.encode(text))
    return made


def compared(
    session: Session, given: Sequence[list[int]], how: str, tokens: int, batch: int, temperature: float
) -> Iterator[tuple[Result, Result]]:
    """The answers to each prompt without and with drafts."""
    for start in range(0, len(given), batch):
        some = list(given[start : start + batch])
        options: dict[str, Any] = {"max_new_tokens": tokens, "temperature": temperature, "seed": start}
        plain = session.generate(some, **options, speculate="off")
        found = session.generate(some, **options, speculate=how)
        yield from zip(plain, found, strict=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--drafters", nargs="*", default=[])
    parser.add_argument("--eager", action="store_true", help="verify every guess, whether it is worth its time or not")
    arguments = parser.parse_args()
    failed = False
    with load(arguments.bundle, speculate="auto", batch=arguments.batch) as session:
        speculation = session.speculation
        if speculation is None:
            sys.exit(f"{arguments.bundle}: nothing is drafted here")
        if arguments.eager:
            speculation.costs = FreeDrafts()
        for how in arguments.drafters or [*speculation.drafters, "auto"]:
            given = prompts(session, arguments.count, Random(how))
            counts: Counter[str] = Counter()
            rest = (arguments.new_tokens, arguments.batch, arguments.temperature)
            for plain, found in compared(session, given, how, *rest):
                counts["answers"] += 1
                counts["same"] += plain.ids == found.ids
                counts["tokens"] += len(found.ids)
                counts["drafted"] += found.trace.drafted
                counts["accepted"] += found.trace.accepted
            print(how, dict(counts), flush=True)
            failed = failed or counts["same"] < counts["answers"]
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
