"""Tokens a second of a session by the number of requests at once: python -m tests.bench.measure_streams BUNDLE

Requests have prompts of random tokens and write as many tokens as they are told, both of mixed lengths. As many as said
are under way at any time: when one has ended the next one comes. All numbers take turns in one process; prompts differ,
so that none is known from another.
"""

from __future__ import annotations

import argparse
import asyncio
from statistics import median, quantiles
from time import perf_counter

import numpy as np

from adaptc.runtime import Result, Session, load


async def run(session: Session, at_once: int, requests: list[tuple[list[int], int]]) -> list[Result]:
    """The results of requests of which so many are under way at any time."""
    pending, results = list(requests), []

    async def client() -> None:
        while pending:
            prompt, count = pending.pop(0)
            results.append(await session.generate_async(prompt, max_new_tokens=count, min_new_tokens=count))

    await asyncio.gather(*(client() for _ in range(at_once)))
    return results


def requests_of(
    random: np.random.Generator, vocab: int, count: int, prompts: list[int], answers: list[int]
) -> list[tuple[list[int], int]]:
    """Prompts and the numbers of tokens to write, of lengths from the least to the largest."""
    return [
        (
            random.integers(100, vocab, int(random.integers(prompts[0], prompts[1]))).tolist(),
            int(random.integers(answers[0], answers[1])),
        )
        for _ in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--prompts", type=int, nargs=2, default=[8, 160], help="least and largest number of tokens")
    parser.add_argument("--answers", type=int, nargs=2, default=[16, 96])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    speeds: dict[int, list[float]] = {number: [] for number in options.at_once}
    first: dict[int, list[float]] = {number: [] for number in options.at_once}
    with load(options.bundle, batch=max(options.at_once), prefix_bytes=0, verify=False) as session:
        for _ in range(options.rounds):
            for number, found in speeds.items():
                requests = requests_of(random, 40_000, max(8, 3 * number), options.prompts, options.answers)
                began = perf_counter()
                results = asyncio.run(run(session, number, requests))
                found.append(sum(len(each.ids) for each in results) / (perf_counter() - began))
                first[number] += [each.trace.time_to_first_token_seconds for each in results]
    alone = speeds[options.at_once[0]]
    for number, found in speeds.items():
        ratios = [one / other for one, other in zip(found, alone, strict=True)]
        late = quantiles(first[number], n=20)[-1]
        print(
            f"{number:3} at once: {median(found):6.0f} tokens/s ({min(found):.0f}–{max(found):.0f}), "
            f"x{median(ratios):.2f} of {options.at_once[0]}; first token {median(first[number]):.2f} s, "
            f"95 % within {late:.2f} s"
        )


if __name__ == "__main__":
    main()
