"""What goes through `Session.generate` on a GPU: ms a step by rows, dense and with a share of blocks skipped.

python -m tests.gpu.generate_times FOLDER NAME… over what tests.gpu.geometry wrote; weights are drawn as in
tests.gpu.kernel_times. Prompts are 16 ids a row; a step's time is that of 160 tokens less that of 32, the median of
three.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from time import perf_counter

from adaptc.runtime import Session
from tests.gpu.kernel_times import load

SHORT, LONG = 32, 160


def seconds(session: Session, rows: int, tokens: int, budget: float | None) -> float:
    """Time of a batch."""
    prompts = [[(7 * row + place) % 1000 + 5 for place in range(16)] for row in range(rows)]
    began = perf_counter()
    session.generate(prompts, max_new_tokens=tokens, budget=budget)
    return perf_counter() - began


def main(folder: Path, names: list[str]) -> None:
    """Print a line for each geometry, number of rows and budget."""
    for name in names:
        decoder = load(folder, name, 32)
        with Session(decoder, None) as session:
            for rows in (1, 8, 32):
                for budget in (None,) if decoder.gates is None else (1.0, 0.0):
                    seconds(session, rows, SHORT, budget)
                    found = []
                    for _ in range(3):
                        short, long = (seconds(session, rows, tokens, budget) for tokens in (SHORT, LONG))
                        found.append((long - short) / (LONG - SHORT) * 1e3)
                    ms = median(found)
                    rate = rows / ms * 1e3
                    print(f"{name} rows {rows} budget {budget}: {ms:.3f} ms a step, {rate:.0f} tokens/s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
