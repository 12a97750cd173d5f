"""What switching costs: a stitched bundle's donor route beside the same model compiled alone, and the memory of both.

    python compare.py STITCHED ROUTE PLAIN

The two take turns, with one thread each, and processor time is counted, so that other programs matter little; of each
the fastest fifth counts. Memory is what a process has more after it loaded one bundle and ran every route: resident
pages, each mapping of a file counted; `held`, where pages that two mappings share count once; and anonymous ones, which
belong to no file. `adaptc build` makes weights pages of a file.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np

from adaptc import runtime

PROMPT = ", ".join(map(str, range(1, 24))) + ","
"""A list that a model goes on with for long."""

NEW, TURNS = 24, 20


def main(stitched: str, route: str, plain: str) -> None:
    """Measure and print JSON."""
    times: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "decode": []} for name in ("stitched", "plain")}
    with (
        runtime.load(stitched, threads=1, verify=False) as one,
        runtime.load(plain, threads=1, verify=False) as other,
    ):
        for turn in range(TURNS + 1):
            for name, session, way in (("stitched", one, route), ("plain", other, None)):
                first, whole = (seconds(session, new, way) for new in (1, NEW))
                if turn:
                    times[name]["prefill"].append(first)
                    times[name]["decode"].append((whole - first) / (NEW - 1))
    found = {
        kind: {name: float(np.percentile(each[kind], 20)) * 1e3 for name, each in times.items()}
        for kind in ("prefill", "decode")
    }
    print(
        json.dumps(
            {
                "ms of processor time": found,
                "stitched / plain": {kind: each["stitched"] / each["plain"] for kind, each in found.items()},
                "bytes": {name: memory(path) for name, path in (("stitched", stitched), ("plain", plain))},
            },
            indent=1,
        )
    )


def seconds(session: runtime.Session, new: int, route: str | None) -> float:
    """Processor time of a request of one thread: other programs do not count."""
    began = time.process_time()
    written = session.generate(PROMPT, max_new_tokens=new, route=route)
    assert len(written.ids) == new, "the answer ended early; another prompt is needed"
    return time.process_time() - began


def memory(path: str) -> dict[str, int]:
    """Bytes of weights on disk, and of memory once every route has run."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        used = pool.apply(_loaded, (path,))
    return {"data files": sum(file.stat().st_size for file in Path(path).glob("graphs/*.data")), **used}


def _loaded(path: str) -> dict[str, int]:
    before = _rollup()
    with runtime.load(path, verify=False, batch=1) as session:
        for route in session.routes or (None,):
            session.generate([1, 2, 3], max_new_tokens=2, route=route)
        after = _rollup()
    return {name: after[name] - before[name] for name in after}


def _rollup() -> dict[str, int]:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return {"resident": sizes["Rss"], "held": sizes["Pss"], "anonymous": sizes["Anonymous"]}


if __name__ == "__main__":
    main(*sys.argv[1:])
