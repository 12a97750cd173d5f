"""Flood `/v1/jobs` with mixed deadlines and floors: what is accepted ends in time, what is refused is told so quickly.

    adaptc serve digits --threads 1
    python -m tests.bench.measure_jobs http://127.0.0.1:8000 examples/digits/test.npz --rate 400 --seconds 10

Jobs come by a Poisson process, whatever the answers are (an open loop). The capacity is what the server does with the
same jobs at once and without deadlines, measured first; `--rate` is in jobs a second, or `--load` in multiples of that.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

SIZES = (1, 48)
FLOORS = (0.0, 0.9, 0.95, 0.975, 0.985)
DEADLINES_MS = (10.0, 500.0)


@dataclass(slots=True)
class Job:
    """A job, and what became of it."""

    at: float
    body: bytes
    floor: float
    deadline_ms: float
    status: int = 0
    answered_ms: float = 0.0
    told: Mapping[str, Any] | None = None


def jobs_of(
    rows: Mapping[str, npt.NDArray[Any]], count: int, rate: float, seed: int, *, hurry: bool = True
) -> list[Job]:
    """Jobs of random rows, sizes, floors and deadlines (uniform in the logarithm)."""
    random = np.random.default_rng(seed)
    all_ = len(next(iter(rows.values())))
    at = np.cumsum(random.exponential(1 / rate, count)) if rate else np.zeros(count)
    found = []
    for place in range(count):
        picked = random.integers(0, all_, int(random.integers(SIZES[0], SIZES[1] + 1)))
        inputs = {
            name: {
                "data": base64.b64encode(np.ascontiguousarray(array[picked], "<f4").tobytes()).decode(),
                "shape": list(array[picked].shape),
            }
            for name, array in rows.items()
        }
        floor = float(random.choice(FLOORS))
        deadline = float(np.exp(random.uniform(*np.log(DEADLINES_MS)))) if hurry else 1e6
        body = json.dumps({"inputs": inputs, "accuracy": floor, "deadline_ms": deadline}).encode()
        found.append(Job(float(at[place]), body, floor, deadline))
    return found


async def flood(client: httpx.AsyncClient, jobs: list[Job]) -> float:
    """Send jobs at their times, then fetch the accepted ones; seconds until all had ended."""
    began = time.monotonic()

    async def send(job: Job) -> None:
        await asyncio.sleep(max(0.0, began + job.at - time.monotonic()))
        sent = time.monotonic()
        answer = await client.post("/v1/jobs", content=job.body, headers={"Content-Type": "application/json"})
        job.answered_ms = (time.monotonic() - sent) * 1e3
        job.status, job.told = answer.status_code, answer.json()

    await asyncio.gather(*map(send, jobs))
    for job in jobs:
        while job.told is not None and job.told.get("status") == "queued":
            job.told = (await client.get(f"/v1/jobs/{job.told['id']}")).json()
            if job.told.get("status") == "queued":
                await asyncio.sleep(0.002)
    seconds = time.monotonic() - began
    for job in jobs:
        if job.status == 202 and job.told is not None:
            await client.delete(f"/v1/jobs/{job.told['id']}")
    return seconds


def quantiles(values: list[float]) -> str:
    """Median and 95th percentile."""
    return f"median {np.median(values):.3g}, p95 {np.percentile(values, 95):.3g}" if values else "none"


def report(jobs: list[Job]) -> dict[str, Any]:
    """What became of the jobs."""
    done = [job for job in jobs if job.told is not None and job.told.get("status") == "done"]
    told = [job.told for job in done if job.told is not None]
    refused = [job for job in jobs if job.status == 409]
    ratios = [each["adaptc"]["ms"] / each["predicted_ms"] for each in told]
    return {
        "jobs": len(jobs),
        "accepted": len(done),
        "accepted in time": f"{1 - np.mean([each['adaptc']['late'] for each in told]):.4f}" if told else "none",
        "under their floor": sum(
            job.told["adaptc"]["accuracy"] < job.floor - 1e-6 for job in done if job.told is not None
        ),
        "refused (409)": len(refused),
        "refused after, ms": quantiles([job.answered_ms for job in refused]),
        "other answers": sorted({job.status for job in jobs} - {202, 409}),
        "actual / predicted": quantiles(ratios),
        "ended by latest_ms": f"{np.mean([e['adaptc']['ms'] <= e['latest_ms'] for e in told]):.4f}" if told else "none",
        "a refusal": refused[0].told["error"]["message"] if refused and refused[0].told is not None else "none",
    }


async def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("data", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--load", type=float, default=2.0, help="Of the capacity.")
    parser.add_argument("--rate", type=float, help="Jobs a second, in place of --load.")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with np.load(given.data) as file:
        rows = {name: file[name] for name in file.files if name != "labels"}
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=given.url, timeout=60, limits=limits) as client:
        warm = jobs_of(rows, 100, 0.0, given.seed + 1, hurry=False)
        capacity = len(warm) / await flood(client, warm)
        rate = given.rate or given.load * capacity
        jobs = jobs_of(rows, int(rate * given.seconds), rate, given.seed)
        await flood(client, jobs)
    print(f"capacity {capacity:.0f} jobs a second without deadlines; sent {rate:.0f}")
    for name, value in report(jobs).items():
        print(f"{name:20} {value}")


if __name__ == "__main__":
    asyncio.run(main())
