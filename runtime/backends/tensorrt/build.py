"""Build the engines of a bundle: on the machine that will run them, or for RTX on any."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adaptc.runtime.backends.cuda.bundle_partitions import decoder_graph, decoder_graphs, read_partitions
from adaptc.runtime.backends.cuda.driver.device import Device
from adaptc.runtime.backends.cuda.driver.nvrtc import store_cubin
from adaptc.runtime.backends.cuda.kernels.skinny_gemm import LEAST_SM, source_of
from adaptc.runtime.backends.cuda.kernels.step_kernels import step_source
from adaptc.runtime.backends.cuda.step import decides_itself
from adaptc.runtime.backends.tensorrt.build_report import MODES, RENAMED, BuildReport
from adaptc.runtime.backends.tensorrt.engines import EngineFolder, EngineRecord, content_of
from adaptc.runtime.backends.tensorrt.gate_times import measured
from adaptc.runtime.backends.tensorrt.layers import steps_of
from adaptc.runtime.backends.tensorrt.library import Trt
from adaptc.runtime.backends.tensorrt.sizes import buckets, plain_graph, profile, wanted
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.partitions import PartitionGraph
from adaptc.runtime.errors import EngineError, RequestError

CHUNK = 512
"""Most tokens of a prompt that go through the engines at once."""

NEARLY_FULL = 1 << 30
"""Bytes of a GPU: with fewer free, that may be why an engine cannot be built."""


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """An engine that is there now.

    Attributes:
        done: Number of engines that are there.
        total: Number of engines in all.
        record: Record of the newest.
        cached: Whether it was there before.
    """

    done: int
    total: int
    record: EngineRecord
    cached: bool


def build_engines(
    bundle: Bundle,
    flavour: str,
    *,
    sm: Sequence[int] = (),
    batches: Sequence[int] = (),
    kv_buckets: Sequence[int] = (),
    chunk: int = CHUNK,
    whole: bool = False,
    mode: str = "auto",
    observe: Callable[[BuildProgress], None] = lambda _: None,
) -> list[EngineRecord]:
    """Build every engine a bundle needs; those that are there are kept.

    Args:
        bundle: Compiled for TensorRT.
        flavour: "tensorrt" or "tensorrt-rtx".
        sm: Compute capabilities to build for, without a GPU; RTX only. By default this machine's GPU.
        batches: Rows of a step; by default 1 and the bundle's batch.
        kv_buckets: Positions of the cache that steps read; by default doubled from 256 up to the bundle's max_tokens.
        chunk: Most tokens of a prompt at once; 1 builds no engine for prompts.
        whole: Also build the dense model in one piece, to compare with.
        mode: How a session will follow gates: "on_device", "one_step_late", or "auto" for what is quickest on this
            machine, where that can be timed; see docs/tensorrt.md.
        observe: Told of each engine.

    Raises:
        BundleError: the bundle is not for TensorRT.
        EngineError: the library is not there, or refuses a graph; engines that are built stay.
        RequestError: a size is out of range, or there is no such mode here.
    """
    check_mode(mode)
    trt, folder = Trt(flavour), EngineFolder(bundle.path, flavour)
    gpu = None if sm else _gpu(flavour)
    device = ("", tuple(sm)) if gpu is None else (gpu.name, (gpu.sm,))
    decided = decide(bundle, mode, gpu)
    work = list(_graphs(bundle)) or list(
        _partitions(bundle, device[1], batches=batches, kv_buckets=kv_buckets, chunk=chunk, whole=whole)
    )
    if any("tokens" in each.sizes for each in work):
        _keep_kernels(bundle, device[1], folder.path)
    known = {record.key: record for record in folder.records()}
    made: list[EngineRecord] = []
    timings = b""
    for each in work:
        about = (content_of(bundle, each.graph.file), each.label, flavour, trt.version, *device, each.sizes)
        record = EngineRecord(*about, "", 0, 0.0, ())
        cached = record.key in known
        if cached:
            record = known[record.key]
        else:
            record, plan, timings = _built(trt, bundle.onnx(each.graph.file), each, record, sm, timings)
            folder.write(record, plan)
        made.append(record)
        observe(BuildProgress(len(made), len(work), record, cached))
    folder.decide(decided)
    if mode == "auto" and gpu is not None and flavour == bundle.manifest.target.backend and _deciding(bundle):
        sizes = _step_sizes(bundle, batches, kv_buckets)
        folder.decide(measured(bundle, decided, sizes[0][0], sizes[1][-1]))
    return made


def _built(
    trt: Trt, file: Path, work: _Work, about: EngineRecord, sm: Sequence[int], timings: bytes
) -> tuple[EngineRecord, bytes, bytes]:
    """An engine's record, the engine, and timings for the next one."""
    began = time.perf_counter()
    try:
        made, timings = trt.build(file.read_bytes(), profile(work.graph, work.sizes), sm, timings, str(file))
    except EngineError as error:
        raise EngineError(f"{file}: {error}{_lack(sm) if 'memory' not in str(error) else ''}") from error
    record = replace(
        about,
        sha256=hashlib.sha256(made.plan).hexdigest(),
        bytes=len(made.plan),
        seconds=round(time.perf_counter() - began, 3),
        layers=steps_of(made.listing) or trt.layers(made.plan),
    )
    return record, made.plan, timings


def _lack(sm: Sequence[int]) -> str:
    """What to add to a builder's reasons where the GPU is nearly full, as it does not say so itself."""
    if sm:
        return ""
    from adaptc.runtime.backends.cuda.driver.cuda import Cuda

    try:
        cuda = Cuda()
    except EngineError as error:
        return f"; {error}"
    free = cuda.free_bytes()
    cuda.close()
    return f"; {free / 1e6:.0f} MB of the GPU's memory are free: free some more" if free < NEARLY_FULL else ""


@dataclass(frozen=True, slots=True)
class _Work:
    """An engine to build: of what, and for which sizes."""

    label: str
    graph: PartitionGraph
    sizes: dict[str, tuple[int, int, int]]


def _graphs(bundle: Bundle) -> Iterator[_Work]:
    """The graphs of a bundle in which none continues a sequence: each whole, for one row up to the bundle's batch."""
    graphs, most = bundle.manifest.graphs, bundle.manifest.target.batch
    if bundle.manifest.target.backend != "onnxruntime" and all(graph.decoder is None for graph in graphs.values()):
        for name, spec in graphs.items():
            yield _Work(name, plain_graph(spec), {"batch": (1, most, most)})


def _partitions(
    bundle: Bundle, sm: Sequence[int], *, batches: Sequence[int], kv_buckets: Sequence[int], chunk: int, whole: bool
) -> Iterator[_Work]:
    """The partitions of a decoder, or of all parts of a stitched one, for steps and prompts; equal ones once."""
    specs = decoder_graphs(bundle)
    most = min(spec.max_tokens for spec in specs.values())
    batches, kv_buckets = _step_sizes(bundle, batches, kv_buckets)
    if min(batches) < 1 or chunk < 1 or not 1 <= kv_buckets[0] <= kv_buckets[-1] <= most:
        raise RequestError(f"build: batches and chunk are from 1, KV buckets from 1 to the bundle's max_tokens, {most}")
    seen: list[tuple[str, dict[str, tuple[int, int, int]]]] = []
    for name in specs:
        partitions = read_partitions(bundle, name)
        used = {call.graph for call in partitions.calls()} | ({partitions.whole.graph} if whole else set())
        for label, graph in partitions.graphs.items():
            prompt = 1 if label == partitions.whole.graph else min(chunk, most)
            for sizes in wanted(graph, batches, kv_buckets, prompt, sm) if label in used else ():
                this = content_of(bundle, graph.file), sizes
                if this not in seen:
                    seen.append(this)
                    yield _Work(label if len(specs) == 1 else f"{name}/{label}", graph, sizes)


def _step_sizes(
    bundle: Bundle, batches: Sequence[int], kv_buckets: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows of a step and sizes of the cache, both rising: those given, or what a bundle gets by default."""
    most = min(spec.max_tokens for spec in decoder_graphs(bundle).values())
    return tuple(sorted(batches or {1, bundle.manifest.target.batch})), tuple(sorted(kv_buckets)) or buckets(most)


def _keep_kernels(bundle: Bundle, sm: Sequence[int], folder: Path) -> None:
    """Compile our own kernels, too."""
    half = read_partitions(bundle, decoder_graph(bundle)[0]).half
    for each in sm:
        store_cubin(step_source(), each, folder)
        if each >= LEAST_SM:
            store_cubin(source_of(half), each, folder)


def check_mode(mode: str) -> None:
    """Refuse a mode that there is not.

    Raises:
        RequestError: with what there is.
    """
    if mode == "in_engine":
        raise RequestError(
            "mode: 'in_engine'; an engine with If inside cannot be captured, and took longer than the dense one where "
            "it was measured (docs/tensorrt.md): on_device, one_step_late or auto is right"
        )
    if mode in RENAMED:
        raise RequestError(f"mode: {mode!r} is called {RENAMED[mode]!r} now")
    if mode not in (*MODES, "auto"):
        raise RequestError(f"mode: {mode!r}; there are: {', '.join((*MODES, 'auto'))}")


def _deciding(bundle: Bundle) -> list[str]:
    """Graphs with gates that decide at each token."""
    return [name for name, gates in bundle.manifest.gates.items() if gates.policy != "static"]


def decide(bundle: Bundle, mode: str, gpu: Device | None) -> BuildReport:
    """How a session follows the gates of a bundle, as far as that is known without timing anything.

    Args:
        bundle: Compiled for TensorRT.
        mode: "on_device", "one_step_late" or "auto".
        gpu: That will run it; None if it is not known.

    Raises:
        RequestError: "one_step_late" for a bundle without gates that decide at each token.
    """
    gated = _deciding(bundle)
    if mode == "one_step_late" and not gated:
        raise RequestError(
            "mode: 'one_step_late'; no gate of this bundle decides at each token: on_device or auto is right"
        )
    if mode != "auto":
        return BuildReport(mode, "asked for")
    if not gated:
        return BuildReport("on_device", "no gate decides at each token")
    if gpu is None:
        return BuildReport("on_device", "the GPU is not known, so nothing was measured")
    rows = bundle.manifest.target.batch
    if all(decides_itself(read_partitions(bundle, name), rows, gpu) for name in gated):
        return BuildReport("on_device", "the GPU reads the gates itself")
    return BuildReport("one_step_late", f"driver {gpu.driver} has no conditional nodes")


def _gpu(flavour: str) -> Device:
    """This machine's GPU."""
    from adaptc.runtime.backends.cuda.driver.cuda import Cuda

    try:
        cuda = Cuda()
    except EngineError as error:
        mend = "; or say --sm 86,89,120, which needs no GPU" if flavour == "tensorrt-rtx" else ""
        raise EngineError(f"{error}{mend}") from error
    device = cuda.device
    cuda.close()
    return device
