"""Steps of a stitched bundle: each route, and rows of several routes at once."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from adaptc.runtime.backends.cuda.routes import GpuRoutes
from adaptc.runtime.backends.tensorrt.loading import tensorrt_decoder
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.text.sampling import Sampler, Sampling

STEPS, WARM = 200, 10
"""Most steps timed of each kind, and steps before them."""

PROMPT = np.arange(1, 17)


def timed(rows: GpuRoutes, routes: Sequence[str]) -> dict[str, float]:
    """Seconds of a prompt of 16 tokens and of a step, with a row on each of these routes."""
    began = perf_counter()
    tokens = [int(rows.start(row, PROMPT, RequestOptions(route=route)).argmax()) for row, route in enumerate(routes)]
    prompt = (perf_counter() - began) / len(routes)
    samplers = [Sampler(Sampling(), [], np.random.default_rng(0)) for _ in routes]
    steps = []
    for _ in range(min(STEPS + WARM, rows.spec.max_tokens - len(PROMPT) - 2)):
        began = perf_counter()
        tokens = rows.choose([max(token, 0) for token in tokens], samplers)
        steps.append(perf_counter() - began)
    return {"prompt": prompt, "step": median(steps[WARM:])}


def routes_bundle(bundle: Bundle, batch: int) -> dict[str, Any]:
    rows = tensorrt_decoder(bundle, batch, 64)
    if not isinstance(rows, GpuRoutes):
        rows.close()
        raise SystemExit(f"{bundle.path}: has no routes; measure time is right")
    found: dict[str, Any] = {"taken": rows.taken}
    for route in rows.routes:
        found[route] = timed(rows, [route] * batch)
        print(route, found[route], flush=True)
    if batch > 1:
        found["mixed"] = timed(rows, [rows.routes[row % len(rows.routes)] for row in range(batch)])
        print("mixed", found["mixed"], flush=True)
    began = perf_counter()
    for route in reversed(rows.routes):
        rows.reroute(0, route)
    found["reroute"] = (perf_counter() - began) / len(rows.routes)
    rows.close()
    return found
