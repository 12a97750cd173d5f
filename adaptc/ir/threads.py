"""Work on a matrix shared out by rows, each part by one processor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")
Done = TypeVar("Done")


def side_by_side(work: Callable[[Part], Done], parts: Iterable[Part]) -> list[Done]:
    """Do a piece of work for each part, as many at a time as torch has threads; results in order.

    Torch's own threads rest meanwhile: they share out single operators, and here these are small and many.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, parts))
    finally:
        torch.set_num_threads(threads)
