"""From a bundle with TensorRT engines to an engine or a decoder on this machine's GPU."""

from __future__ import annotations

import warnings

from adaptc.runtime.backends.cuda.bundle_partitions import graphs_of, partitions_of
from adaptc.runtime.backends.cuda.decoder import GpuDecoder
from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.engine import GpuEngine
from adaptc.runtime.backends.cuda.loading import cuda_decoder
from adaptc.runtime.backends.cuda.routes import GpuRoutes
from adaptc.runtime.backends.tensorrt.context import Context
from adaptc.runtime.backends.tensorrt.engines import EngineFolder
from adaptc.runtime.backends.tensorrt.library import Trt
from adaptc.runtime.backends.tensorrt.partition_runner import TensorRtRunner
from adaptc.runtime.backends.tensorrt.sizes import plain_graph
from adaptc.runtime.bundle.folder import Bundle


def tensorrt_engine(bundle: Bundle, name: str) -> GpuEngine:
    """Load the engine of a graph that continues no sequence.

    Args:
        bundle: Compiled for TensorRT, and built on this machine.
        name: Name of the graph.

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


def tensorrt_decoder(bundle: Bundle, batch: int, chunk: int) -> GpuDecoder | GpuRoutes:
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
        runner = TensorRtRunner(bundle, graphs_of(parts), flavour, cuda)
        decoder = cuda_decoder(cuda, runner, bundle, parts, batch, chunk, report.mode, dense=report.dense)
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
