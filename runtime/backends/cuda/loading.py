"""From a bundle with engines to a decoder on this machine's GPU."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

from adaptc.runtime.backends.cuda.decoder import GpuDecoder
from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.engine import GpuEngine
from adaptc.runtime.backends.cuda.memory import Values, Weights
from adaptc.runtime.backends.cuda.part import Gpu, row_sizes
from adaptc.runtime.backends.cuda.routes import GpuRoutes
from adaptc.runtime.backends.tensorrt.context import Context
from adaptc.runtime.backends.tensorrt.engines import EngineFolder, decoder_graphs, plain_graph, read_partitions
from adaptc.runtime.backends.tensorrt.library import Trt
from adaptc.runtime.backends.tensorrt.pieces import Pieces, TrtPieces
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.partitions import PartitionGraph, Partitions
from adaptc.runtime.model.decoder import state_width
from adaptc.runtime.model.router import router_of


def gpu_engine(bundle: Bundle, name: str) -> GpuEngine:
    """Load the engine of a graph that continues no sequence.

    Args:
        bundle: Compiled for TensorRT, and built on this machine.
        name: Of the graph.

    Raises:
        EngineError: no GPU, no engine that fits it, or too little memory.
    """
    spec, target = bundle.manifest.graphs[name], bundle.manifest.target
    folder, cuda = EngineFolder(bundle.path, target.backend), Cuda()
    try:
        trt = Trt(target.backend)
        here = trt.version, cuda.device.sm, cuda.device.name
        record = folder.find(folder.records(), bundle, plain_graph(spec), {"batch": 1}, here)
        context = Context(trt, trt.runtime(), folder, record)
        context.use(cuda.alloc(context.bytes), context.bytes)
        return GpuEngine(cuda, context, spec.inputs, spec.outputs, record.sizes["batch"][2])
    except BaseException:
        cuda.close()
        raise


def gpu_decoder(bundle: Bundle, batch: int, chunk: int) -> GpuDecoder | GpuRoutes:
    """Load a bundle's engines onto the GPU; on an error nothing stays there.

    Args:
        bundle: Compiled for TensorRT, and built on this machine.
        batch: Most sequences written at the same time.
        chunk: Most tokens of a prompt read at once.

    Raises:
        BundleError: the bundle is not for TensorRT.
        EngineError: no GPU, no engines that fit it, or too little memory.
        RequestError: no engine serves so many rows.
    """
    parts = partitions_of(bundle)
    flavour = bundle.manifest.target.backend
    folder = EngineFolder(bundle.path, flavour)
    report = folder.report()
    cuda = Cuda(cubins=folder.path)
    try:
        pieces = TrtPieces(bundle, graphs_of(parts), flavour, cuda)
        decoder = rows_on(cuda, pieces, bundle, parts, batch, chunk, report.mode, dense=report.dense)
    except BaseException:
        cuda.close()
        raise
    if (
        any(partitions.gates for partitions in parts.values())
        and not decoder.conditional
        and report.mode == "on_device"
    ):
        warnings.warn(
            f"{bundle.path}: driver {cuda.device.driver} has no conditional nodes, so the host waits for every gate; "
            "a driver of CUDA 12.8 is right, or adaptc build --mode one_step_late",
            stacklevel=2,
        )
    return decoder


def partitions_of(bundle: Bundle) -> dict[str, Partitions]:
    """The partitions of a bundle's decoder, or of each part of a stitched one, whose graphs' names then say of which.

    Raises:
        BundleError: the bundle is not for TensorRT.
    """
    names = list(decoder_graphs(bundle))
    found = {name: read_partitions(bundle, name) for name in names}
    return {name: partitions.called(f"{name}/") for name, partitions in found.items()} if len(names) > 1 else found


def graphs_of(parts: Mapping[str, Partitions]) -> dict[str, PartitionGraph]:
    """All graphs of several partitions, by name."""
    return {name: graph for partitions in parts.values() for name, graph in partitions.graphs.items()}


def rows_on(
    cuda: Cuda,
    pieces: Pieces,
    bundle: Bundle,
    parts: Mapping[str, Partitions],
    batch: int,
    chunk: int,
    mode: str = "on_device",
    *,
    dense: bool = False,
) -> GpuDecoder | GpuRoutes:
    """Put a bundle's decoder, or its trunk and tails, onto a GPU.

    Args:
        cuda: The GPU.
        pieces: What runs the partitions.
        bundle: Has weights, gates and the router.
        parts: As `partitions_of` gives them.
        batch: See `gpu_decoder`.
        chunk: See `gpu_decoder`.
        mode: How gates are followed: "on_device", "one_step_late".
        dense: Whether requests that name no budget run every block, whatever the bundle's gates say.
    """
    sizes, chunk = row_sizes(pieces, batch), min(chunk, pieces.tokens())
    [data] = {partitions.data for partitions in parts.values()}
    weights = Weights(cuda, bundle.path / data)
    values = Values(cuda, parts.values(), max(sizes[-1], chunk))
    gpu = Gpu(cuda, cuda.stream(), pieces, weights, values, sizes, chunk, mode)
    specs, gates = decoder_graphs(bundle), bundle.manifest.gates
    if dense:
        gates = {name: replace(each, budget=1.0) for name, each in gates.items()}
    given = {name: (partitions, specs[name], gates.get(name)) for name, partitions in parts.items()}
    first, *_ = given
    switch = bundle.manifest.switch
    if switch is None:
        partitions, spec, gate = given[first]
        return GpuDecoder(gpu, partitions, spec, batch, gate)
    width = state_width(bundle.manifest.graphs[first].outputs)
    assert width is not None
    tails = {route: given[name] for route, name in switch.routes.items()}
    return GpuRoutes(gpu, given[first], tails, width, batch, router_of(bundle, switch))
