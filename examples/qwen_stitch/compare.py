"""What switching costs: a stitched bundle's donor route beside the same model compiled alone, and the memory of both.

    python compare.py STITCHED ROUTE PLAIN

The two take turns, so that whatever else the machine does hits both; of each the fastest fifth counts. Memory is the
private and file-backed memory of a process that has loaded one bundle and run every route.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np

from adaptc import runtime

PROMPT, NEW, TURNS = 64, 24, 12


def main(stitched: str, route: str, plain: str) -> None:
    """Measure and print JSON."""
    ids = np.random.default_rng(0).integers(1000, 9000, PROMPT).tolist()
    times: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "decode": []} for name in ("stitched", "plain")}
    with runtime.load(stitched, verify=False) as one, runtime.load(plain, verify=False) as other:
        for turn in range(TURNS + 1):
            for name, session, options in (("stitched", one, {"route": route}), ("plain", other, {})):
                trace = session.generate(ids, max_new_tokens=NEW, **options).trace  # type: ignore[arg-type]
                if turn and trace.new_tokens > 1:
                    times[name]["prefill"].append(trace.prefill_seconds)
                    times[name]["decode"].append(trace.decode_seconds / (trace.new_tokens - 1))
    found = {
        kind: {name: float(np.percentile(each[kind], 20)) * 1e3 for name, each in times.items()}
        for kind in ("prefill", "decode")
    }
    print(
        json.dumps(
            {
                "ms": found,
                "stitched / plain": {kind: each["stitched"] / each["plain"] for kind, each in found.items()},
                "bytes": {name: memory(path) for name, path in (("stitched", stitched), ("plain", plain))},
            },
            indent=1,
        )
    )


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
    return {"resident": sizes["Rss"], "anonymous": sizes["Anonymous"]}


if __name__ == "__main__":
    main(*sys.argv[1:])
