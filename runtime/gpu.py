"""From a bundle with engines to a decoder on this machine's GPU."""

from __future__ import annotations

import warnings

from adaptc.runtime.bundle import Bundle
from adaptc.runtime.cuda import Cuda
from adaptc.runtime.engines import EngineFolder, decoder_graph, plain_graph, read_regions
from adaptc.runtime.gpu_decoder import GpuDecoder
from adaptc.runtime.gpu_engine import GpuEngine
from adaptc.runtime.manifest import GateSpec
from adaptc.runtime.pieces import TrtPieces
from adaptc.runtime.trt import Trt
from adaptc.runtime.trt_context import Context


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


def gpu_decoder(bundle: Bundle, batch: int, chunk: int, gates: GateSpec | None) -> GpuDecoder:
    """Load a bundle's engines onto the GPU; on an error nothing stays there.

    Args:
        bundle: Compiled for TensorRT, and built on this machine.
        batch: Most sequences written at the same time.
        chunk: Most tokens of a prompt read at once.
        gates: What decides which blocks run, if the bundle has gates.

    Raises:
        BundleError: the bundle is not for TensorRT.
        EngineError: no GPU, no engines that fit it, or too little memory.
        RequestError: no engine serves so many rows.
    """
    name, spec = decoder_graph(bundle)
    regions = read_regions(bundle, name)
    flavour = bundle.manifest.target.backend
    cuda = Cuda(cubins=EngineFolder(bundle.path, flavour).path)
    try:
        pieces = TrtPieces(bundle, regions, flavour, cuda)
        decoder = GpuDecoder(cuda, pieces, regions, bundle.path / regions.data, spec, batch, chunk, gates)
    except BaseException:
        cuda.close()
        raise
    if regions.gates and not decoder.conditional:
        warnings.warn(
            f"{bundle.path}: driver {cuda.device.driver} has no conditional nodes, so the host waits for every gate; "
            "a driver of CUDA 12.8 is right",
            stacklevel=2,
        )
    return decoder
