"""Steps of a decoder on a GPU: compared with what eager float32 says, and timed."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from adaptc.runtime.backends.cuda.decoder import GpuDecoder
from adaptc.runtime.backends.cuda.kernels.step_kernels import RING
from adaptc.runtime.backends.tensorrt.loading import tensorrt_decoder
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.text.sampling import Sampler, Sampling

STEPS = 100
"""Steps timed of each kind, five times."""

GATED = 0.0
"""A threshold between the gates' logits, which are set to 1 and -1."""


def trt_graph(decoder: GpuDecoder) -> Any:
    """The decoder's graph, whose parts are TensorRT's: what `GpuGraph` promises of any is less."""
    return decoder.graph


def trt_runner(decoder: GpuDecoder) -> Any:
    """What runs its partitions."""
    return decoder._gpu.runner


def whole_decoder(bundle: Bundle, batch: int, chunk: int) -> GpuDecoder:
    """The decoder of a bundle without routes."""
    decoder = tensorrt_decoder(bundle, batch, chunk)
    if not isinstance(decoder, GpuDecoder):
        decoder.close()
        raise SystemExit(f"{bundle.path}: has routes; measure routes is right")
    return decoder


def set_mask(decoder: GpuDecoder, mask: np.ndarray) -> None:
    """Make the gates want what a mask says: their logits are weights on the device, so nothing is captured anew."""
    for gate, runs in zip(trt_graph(decoder).partitions.gates, mask, strict=True):
        decoder._gpu.cuda.put(
            trt_graph(decoder).memory.weights[gate.logit], np.array([1.0 if runs else -1.0], np.float32)
        )


def kl(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL(expected || found) of softmaxes, nats, row by row."""

    def logs(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64) - x.max(-1, keepdims=True)
        result: np.ndarray = x - np.log(np.exp(x).sum(-1, keepdims=True))
        return result

    p, q = logs(expected), logs(found)
    divergence: np.ndarray = (np.exp(p) * (p - q)).sum(-1)
    return divergence


def check_bundle(bundle: Bundle, expected: dict[str, np.ndarray]) -> dict[str, Any]:
    decoder = whole_decoder(bundle, 1, 64)
    prompt, ids = expected["prompt"], expected["ids"].tolist()
    found: dict[str, Any] = {"conditional": decoder.conditional}
    logits = [decoder.prefill(0, prompt)]
    logits += [decoder.decode([token])[0].copy() for token in ids[:-1]]
    every = len(ids) // len(expected["logits"])
    divergence = kl(expected["logits"], np.stack(logits)[::every])
    same = [int(row.argmax()) == token for row, token in zip(logits, ids, strict=True)]
    found["dense"] = {
        "same_tokens": float(np.mean(same)),
        "tokens": len(ids),
        "kl_mean": float(divergence.mean()),
        "kl_max": float(divergence.max()),
    }
    sampler = Sampler(Sampling(), [], np.random.default_rng(0))
    free = [int(decoder.prefill(0, prompt).argmax())]
    while len(free) < len(ids):
        free += decoder.choose(free[-1:], [sampler])
    agree = next((place for place, (a, b) in enumerate(zip(free, ids, strict=True)) if a != b), len(ids))
    found["free_running"] = {"same_until": agree, "same_tokens": float(np.mean(np.array(free) == ids))}
    for index, mask in enumerate(expected["masks"]):
        found[f"mask {index}"] = check_mask(decoder, mask, prompt, ids, expected[f"masked.{index}"])
    decoder.close()
    return found


def check_mask(
    decoder: GpuDecoder, mask: np.ndarray, prompt: np.ndarray, ids: list[int], expected: np.ndarray
) -> dict[str, float]:
    """A mask through conditional nodes, and known beforehand, against the eager model."""
    found: dict[str, float] = {"share_run": float(mask.mean())}
    set_mask(decoder, mask)
    for name, force in (("conditional", None), ("forced", tuple(map(bool, mask)))):
        trt_graph(decoder).force = force
        decoder.prefill(0, prompt, GATED)
        logits = np.stack([decoder.decode([token])[0].copy() for token in ids[: len(expected)]])
        right = trt_graph(decoder)._ran[0].tolist() == list(map(bool, mask))
        found[f"{name}_kl"] = float(kl(expected, logits).mean())
        found[f"{name}_same"] = float((logits.argmax(-1) == expected.argmax(-1)).mean())
        found[f"{name}_ran_right"] = float(right)
    trt_graph(decoder).force = None
    return found


def timed(decoder: GpuDecoder, rows: int, share: float, how: str) -> dict[str, float]:
    """Seconds of a step on the device, and of the host's own work in it."""
    layers = len(trt_graph(decoder).partitions.gates)
    skipped = round(share * layers)
    mask = np.ones(layers, np.bool_)
    mask[np.linspace(0, layers - 1, skipped).round().astype(int)] = False
    set_mask(decoder, mask)
    trt_graph(decoder).force = tuple(map(bool, mask)) if how == "forced" else None
    # "gated" is what a session does; "nodes" puts every block under a conditional node; "one_step_late" has
    # the host follow.
    trt_graph(decoder).mode = "one_step_late" if how == "one_step_late" else "on_device"
    trt_graph(decoder).stepper.nodes = how == "nodes"
    decoder.in_flight.drain()
    trt_graph(decoder).captured.forget("on_device")
    level = -np.inf if how == "dense" else GATED
    for row in range(rows):
        trt_graph(decoder).length[row] = 0
        trt_graph(decoder).levels[row] = level
    trt_graph(decoder).length[:rows] = 16
    trt_graph(decoder).levels[:rows] = level
    decoder.in_flight.drain()
    samplers = [Sampler(Sampling(), [], np.random.default_rng(0)) for _ in range(rows)]
    tokens = [1] * rows
    for _ in range(4 if how == "one_step_late" else 1):  # until a mask comes again, and is captured
        tokens = decoder.choose(tokens, samplers)
    found = {"device": device_seconds(decoder, rows), "skipped": float(1 - mask.mean())}
    trt_graph(decoder).length[:rows] = 16
    waited: list[float] = []
    wait = decoder._gpu.cuda.wait

    def waiting(event: Any) -> None:
        began = perf_counter()
        wait(event)
        waited.append(perf_counter() - began)

    decoder._gpu.cuda.wait = waiting  # type: ignore[method-assign]
    steps = []
    for _ in range(STEPS * 2):
        began = perf_counter()
        tokens = decoder.choose(tokens, samplers)
        steps.append(perf_counter() - began)
    decoder._gpu.cuda.wait = wait  # type: ignore[method-assign]
    found["step"] = median(steps)
    found["host"] = median(step - wait_ for step, wait_ in zip(steps, waited, strict=True))
    trt_graph(decoder).force = None
    return found


def device_seconds(decoder: GpuDecoder, rows: int, graph: Any = None) -> float:
    """Median over rounds of the time of a graph launched many times in a row."""
    decoder.in_flight.drain()
    cuda, stream = decoder._gpu.cuda, decoder._gpu.stream
    batch = next(size for size in decoder._gpu.sizes if size >= rows)
    if graph is None:
        key = batch, trt_graph(decoder).cache.bucket, trt_graph(decoder).execution_mode(rows, 0)
        captured = trt_graph(decoder).captured
        graph = captured.get(key) or captured.get(key)  # a mask is captured when it comes again
    begin, end = cuda.event(timing=True), cuda.event(timing=True)
    found = []
    for _ in range(6):
        trt_graph(decoder).length[:rows] = 16
        off = trt_graph(decoder).levels[:rows]
        trt_graph(decoder).control.set([1] * rows, trt_graph(decoder).length[:rows] - 1, off, (), 0, False, 0)
        trt_graph(decoder).ring_index = 0
        cuda.record(begin, stream)
        for _ in range(STEPS):
            cuda.run(graph, stream)
        cuda.record(end, stream)
        cuda.wait(end)
        found.append(cuda.seconds(begin, end) / STEPS)
    trt_graph(decoder).ring_index = STEPS % RING
    return median(found[1:])


def whole_seconds(decoder: GpuDecoder, rows: int) -> float:
    """The dense model in one piece, with the same kernels of ours around it, captured."""
    cuda, stream, control = decoder._gpu.cuda, decoder._gpu.stream, trt_graph(decoder).control
    place = trt_graph(decoder).captured.place(rows, trt_graph(decoder).cache.bucket)
    call = trt_graph(decoder).partitions.whole
    trt_runner(decoder).load(call.graph, place.sizes)
    reads, writes = (
        trt_graph(decoder).memory.reads(call, place.given),
        trt_graph(decoder).memory.writes(call, place.given),
    )

    def step() -> None:
        trt_graph(decoder).stepper.begin(control.state, place, control.levels, stream)
        trt_runner(decoder).enqueue(call.graph, place.sizes, reads, writes, stream)
        trt_graph(decoder).captured.finish(place, control.addresses(trt_graph(decoder).stepper.ran))

    step()
    cuda.sync(stream)
    cuda.begin_capture(stream)
    step()
    return device_seconds(decoder, rows, cuda.end_capture(stream))


def time_bundle(bundle: Bundle, batch: int, whole: bool, mode: str) -> dict[str, Any]:
    from adaptc.runtime.backends.cuda.driver.cuda import Cuda

    probe = Cuda()
    before = probe.free_bytes()
    decoder = whole_decoder(bundle, batch, 1)
    gate = trt_graph(decoder).partitions.gates[0]
    block = sum(trt_graph(decoder).partitions.graphs[call.graph].weights for call in gate.then)
    found: dict[str, Any] = {
        "weights_read": sum(
            trt_graph(decoder).partitions.graphs[call.graph].weights for call in trt_graph(decoder).partitions.calls()
        ),
        "block_bytes": block,
        "taken": dict(decoder.taken),
    }
    found["dense"] = timed(decoder, batch, 0, "dense")
    print("dense", found["dense"], flush=True)
    for share in (0, 0.25, 0.5, 1):
        for how in ("one_step_late", "forced") if mode == "one_step_late" else ("gated", "nodes", "forced"):
            found[f"{how} {share:.0%}"] = timed(decoder, batch, share, how)
            print(f"{how} {share:.0%}", found[f"{how} {share:.0%}"], flush=True)
    found["memory"] = before - probe.free_bytes()
    if whole:
        found["whole"] = whole_seconds(decoder, batch)
    decoder.close()
    probe.close()
    return found
