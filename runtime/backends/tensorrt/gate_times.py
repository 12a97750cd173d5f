"""What gates cost and save on this machine's GPU: the steps of a session, timed after its engines are built."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter

import numpy as np

from adaptc.runtime.backends.cuda.bundle_partitions import decoder_graph
from adaptc.runtime.backends.cuda.decoder import GpuDecoder
from adaptc.runtime.backends.tensorrt.build_report import MODES, BuildReport, StepTimes, judged
from adaptc.runtime.backends.tensorrt.loading import tensorrt_decoder
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.errors import EngineError
from adaptc.runtime.model.budget import DENSE
from adaptc.runtime.text.sampling import Sampler, Sampling

STEPS = 64
"""Steps of each kind in a turn."""

TURNS = 5
"""Of each kind, one after the other, as a busy machine is busy for a while; one more before them captures."""

SETTLE = 3
"""Steps before a turn is timed: the mask of the step before is this one's from the second on."""

RUN, NONE = float(np.finfo(np.float32).min), float("inf")
"""Thresholds under which gates are asked, and have every block run or none."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """Steps of a kind: what gates are compared with, who follows them, and whether a mask is captured instead."""

    threshold: float
    mode: str = "on_device"
    fixed: bool = False


def measure(decoder: GpuDecoder, bucket: int, clock: Callable[[], float] = perf_counter) -> StepTimes:
    """Time the steps of a decoder that nobody uses after it.

    Args:
        decoder: Has gates.
        bucket: Positions of the cache that its engines read.
        clock: Gives seconds.

    Raises:
        EngineError: the cache has no room for steps after the warm-up, or a step failed.
    """
    warmup = 0 if decoder.gates is None else decoder.gates.warmup
    prompt = np.zeros(max(1, warmup), np.int64)
    steps = min(STEPS, bucket - len(prompt) - SETTLE - 1)
    if steps < 1:
        raise EngineError(f"kv_bucket: {bucket}; gates warm up for {warmup} positions, more are right")

    def seconds(kind: _Kind) -> float:
        part, sampler, token = decoder.graph, Sampler(Sampling(), [], np.random.default_rng(0)), [0]

        def go(count: int) -> None:
            nonlocal token
            for _ in range(count):
                if kind.mode == "one_step_late":  # so that the mask is new
                    part.captured.forget(part.execution_mode(1, 0))
                token = decoder.choose(token, [sampler])

        part.mode = kind.mode
        part.force = (False,) * len(part.partitions.gates) if kind.fixed else None
        decoder.prefill(0, prompt, kind.threshold)
        go(SETTLE)
        began = clock()
        go(steps)
        return (clock() - began) / steps

    asked = [_Kind(threshold, mode) for mode in MODES for threshold in (RUN, NONE)]
    kinds = (_Kind(DENSE), *asked, _Kind(DENSE, fixed=True))
    turns = [[seconds(kind) for kind in kinds] for _ in range(TURNS + 1)][1:]
    dense, run, none, late_run, late_none, fixed = (median(turn) for turn in zip(*turns, strict=True))
    return StepTimes(len(decoder.graph.partitions.gates), dense, (run, none), (late_run, late_none), fixed)


def measured(
    bundle: Bundle, otherwise: BuildReport, rows: int, bucket: int, clock: Callable[[], float] = perf_counter
) -> BuildReport:
    """What times of steps say about a bundle's gates.

    Args:
        bundle: With engines for this machine, and with gates that decide at each token.
        otherwise: What is decided where nothing can be timed; if that is "one_step_late", "on_device" is no choice.
        rows: Fewest that a step has; one of them is written.
        bucket: Positions of the cache that its engines read.
        clock: Gives seconds.
    """
    if bundle.manifest.switch is not None:
        return _without(otherwise, "steps of several routes are not timed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the host waits for gates: it is what is timed
            decoder = tensorrt_decoder(bundle, rows, 1)
    except EngineError as error:
        return _without(otherwise, str(error))
    assert isinstance(decoder, GpuDecoder)
    assert decoder.gates is not None
    try:
        times = measure(decoder, bucket, clock)
    except EngineError as error:
        return _without(otherwise, str(error))
    finally:
        decoder.close()
    gates = bundle.manifest.gates[decoder_graph(bundle)[0]]
    return judged(times, gates, MODES if otherwise.mode == MODES[0] else MODES[1:])


def _without(report: BuildReport, reason: str) -> BuildReport:
    return replace(report, why=f"{report.why}; nothing was measured: {reason}")
