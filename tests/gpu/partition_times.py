"""Where a step's time goes: each partition, each of our kernels, each layer of an engine, and the host's calls."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from adaptc.runtime.backends.cuda.decoder import GpuDecoder
from adaptc.runtime.bundle.folder import Bundle
from tests.gpu.steps import trt_graph, trt_runner, whole_decoder

LAUNCHES = 200
"""Launches of a graph that the host's part is the median of."""


def captured_seconds(decoder: GpuDecoder, work: Callable[[], None], times: int) -> float:
    """Seconds of `work`, which does something `times` times, for each of them; captured into a graph."""
    cuda, stream = decoder._gpu.cuda, decoder._gpu.stream
    work()
    cuda.sync(stream)
    cuda.begin_capture(stream)
    work()
    graph = cuda.end_capture(stream)
    begin, end = cuda.event(timing=True), cuda.event(timing=True)
    found = []
    for _ in range(6):
        cuda.record(begin, stream)
        cuda.run(graph, stream)
        cuda.record(end, stream)
        cuda.wait(end)
        found.append(cuda.seconds(begin, end) / times)
    cuda.drop(graph)
    return median(found[1:])


def reset(decoder: GpuDecoder, rows: int) -> None:
    """Back to position 16: every launch goes on by one, and there are tables for so many."""
    decoder.in_flight.drain()
    trt_graph(decoder).control.set([1] * rows, np.full(rows, 15), trt_graph(decoder).levels[:rows], (), 0, False, 0)


def partitions_of(decoder: GpuDecoder, rows: int) -> dict[str, Any]:
    """Time of each graph, over all layers that call it, so that weights are not in the GPU's cache."""
    place, stepper, stream = (
        trt_graph(decoder).captured.place(rows, trt_graph(decoder).cache.bucket),
        trt_graph(decoder).stepper,
        decoder._gpu.stream,
    )
    stepper.load(place)
    calls: dict[str, list[Any]] = {}
    for call in trt_graph(decoder).partitions.calls():
        calls.setdefault(call.graph, []).append(call)
    found: dict[str, Any] = {}
    for name, each in calls.items():
        repeat = max(1, 8 // len(each))

        def work(each: list[Any] = each, repeat: int = repeat) -> None:
            for call in each * repeat:
                stepper._calls((call,), place, stream)

        seconds = captured_seconds(decoder, work, len(each) * repeat)
        weights = trt_graph(decoder).partitions.graphs[name].weights
        found[name] = {
            "ms": seconds * 1e3,
            "calls": len(each),
            "weights_MB": weights / 1e6,
            "TB_per_second": weights / seconds / 1e12,
        }
    return found


def kernels_of(decoder: GpuDecoder, rows: int) -> dict[str, float]:
    """Milliseconds of our own kernels in a step."""
    place, stepper, control, stream = (
        trt_graph(decoder).captured.place(rows, trt_graph(decoder).cache.bucket),
        trt_graph(decoder).stepper,
        trt_graph(decoder).control,
        decoder._gpu.stream,
    )
    at = control.addresses(stepper.ran)
    ways: dict[str, Callable[[], None]] = {
        "begin": lambda: stepper.begin(control.state, place, control.levels, stream),
        "choose": lambda: stepper.choose(control.state, place, at, decoder.spec.vocab_size, stream),
        "write_kv": lambda: stepper.write_kv(control.state, place, trt_graph(decoder).captured._table, 1, stream),
    }
    found = {}
    for name, way in ways.items():

        def work(way: Callable[[], None] = way) -> None:
            for _ in range(10):
                way()

        found[name] = captured_seconds(decoder, work, 10) * 1e3
    reset(decoder, rows)
    return found


def layers_of(decoder: GpuDecoder) -> dict[str, list[tuple[str, float]]]:
    """Milliseconds of each layer of each loaded engine, by its own profiler; not captured, so with gaps."""
    trt = trt_runner(decoder)._trt.module

    class Times(trt.IProfiler):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.rows: list[tuple[str, float]] = []

        def report_layer_time(self, name: str, ms: float) -> None:
            self.rows.append((name[:160], round(ms, 4)))

    found = {}
    seen: set[str] = set()
    place = trt_graph(decoder).captured.place(1, trt_graph(decoder).cache.bucket)
    for call in trt_graph(decoder).partitions.calls():
        if call.graph in seen:
            continue
        seen.add(call.graph)
        engine = trt_runner(decoder)._found.get((call.graph, tuple(sorted(place.sizes.items()))))
        if engine is None:  # a skinny GEMM, which our own kernel computes
            continue
        times = Times()
        engine._context.profiler = times
        engine._context.enqueue_emits_profile = True
        for _ in range(3):
            times.rows = []
            trt_graph(decoder).stepper._calls((call,), place, decoder._gpu.stream)
            decoder._gpu.cuda.sync(decoder._gpu.stream)
        engine._context.enqueue_emits_profile = False
        found[call.graph] = times.rows
    return found


def host_of(decoder: GpuDecoder, rows: int) -> dict[str, float]:
    """Microseconds that the launch of a step's graph takes, while the GPU is idle and while it is busy."""
    cuda, stream = decoder._gpu.cuda, decoder._gpu.stream
    found = {}
    for mode in ("dense", "on_device"):
        key = decoder._gpu.sizes[0] if rows == 1 else decoder._gpu.sizes[-1], trt_graph(decoder).cache.bucket, mode
        for copies in (1, 2):
            graphs = [trt_graph(decoder).captured.capture(key) for _ in range(copies)]
            for busy in (False, True):
                reset(decoder, rows)
                spent = []
                for index in range(LAUNCHES):
                    if not busy or index % 4 == 0:
                        cuda.sync(stream)
                    if busy and index % 4 == 0:
                        cuda.run(graphs[(index + 1) % copies], stream)
                    began = perf_counter()
                    cuda.run(graphs[index % copies], stream)
                    spent.append(perf_counter() - began)
                label = f"{mode}, {copies} executable, {'busy' if busy else 'idle'}"
                found[label] = median(spent) * 1e6
            cuda.sync(stream)
            for graph in graphs:
                cuda.drop(graph)
    reset(decoder, rows)
    return found


def partitions_bundle(bundle: Bundle, batch: int) -> dict[str, Any]:
    """All of it for one number of rows."""
    decoder = whole_decoder(bundle, batch, 1)
    trt_graph(decoder).length[:batch] = 16
    trt_graph(decoder).levels[:batch] = 0
    reset(decoder, batch)
    found: dict[str, Any] = {"kv_bucket": trt_graph(decoder).cache.bucket}
    parts: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("partitions", lambda: partitions_of(decoder, batch)),
        ("kernels_ms", lambda: kernels_of(decoder, batch)),
        ("host_us", lambda: host_of(decoder, batch)),
        ("layers_ms", lambda: layers_of(decoder) if batch == 1 else {}),
    )
    for name, part in parts:
        try:
            found[name] = part()
        except Exception as error:
            found[name] = f"failed: {error}"
        print(name, found[name], flush=True)
    decoder.close()
    return found
