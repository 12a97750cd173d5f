"""From a bundle on disk to a session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adaptc.runtime.budget import check_budget
from adaptc.runtime.bundle import open_bundle
from adaptc.runtime.errors import BundleError, RequestError
from adaptc.runtime.manifest import DecoderSpec, GraphSpec, Manifest
from adaptc.runtime.ort import OrtEngine
from adaptc.runtime.request import check_count
from adaptc.runtime.session import Session
from adaptc.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from adaptc.runtime.engine import Engine
    from adaptc.runtime.gpu_decoder import GpuDecoder

_MOST_THREADS = 1024  # more is a slip of the keyboard, and starting them would exhaust the machine


def load(
    path: str | Path,
    device: str = "auto",
    *,
    threads: int | None = None,
    batch: int | None = None,
    chunk: int = 512,
    verify: bool = True,
    budget: float = 1.0,
) -> Session:
    """Open a bundle and make it ready to run.

    Args:
        path: The bundle's folder.
        device: "cpu", "gpu", or "auto" for the one that the bundle was compiled for.
        threads: Threads that work on one step; by default the physical cores.
        batch: Most sequences written at the same time; by default what the bundle was compiled for.
        chunk: Most tokens of a prompt read at once; fewer need less memory, more are quicker.
        verify: Compare every file's sha256 with the manifest's.
        budget: Of requests that name none, from 0 (cheapest) to 1 (dense), for bundles with gates; others run dense.

    Raises:
        BundleError: no bundle there, or it is damaged.
        EngineError: the engine is not installed or refuses the graph.
        RequestError: a value is out of range, or the KV cache does not fit in memory.
    """
    if device not in ("auto", "cpu", "gpu"):
        raise RequestError(f"device: {device!r}; there are: auto, cpu, gpu")
    if threads is not None:
        check_count("threads", threads, most=_MOST_THREADS)
    check_budget(budget)
    bundle = open_bundle(path, verify)
    graph, decoder = _decoder_graph(bundle.manifest, str(path))
    folder = bundle.path / "tokenizer"
    tokenizer = Tokenizer(folder) if folder.exists() else None
    batch = bundle.manifest.target.batch if batch is None else batch
    gates = bundle.manifest.gates.get(bundle.manifest.plan[0].run)
    backend = bundle.manifest.target.backend
    kind = "cpu" if backend == "onnxruntime" else "gpu"
    if device not in ("auto", kind):
        raise RequestError(f"device: {device!r}; {path} was compiled for {backend}: its device is {kind!r}")
    if kind == "gpu":
        check_count("batch", batch)
        check_count("chunk", chunk)
        from adaptc.runtime.gpu import gpu_decoder

        engine: Engine | GpuDecoder = gpu_decoder(bundle, batch, chunk, gates)
    else:
        engine = OrtEngine(bundle.path / graph.file, threads)
    return Session(engine, decoder, tokenizer, batch=batch, chunk=chunk, gates=gates, budget=budget)


def _decoder_graph(manifest: Manifest, where: str) -> tuple[GraphSpec, DecoderSpec]:
    graphs = [manifest.graphs[step.run] for step in manifest.plan]
    if len(graphs) != 1 or graphs[0].decoder is None:
        raise BundleError(f"{where}: its plan is not one decoder graph; a newer adaptc may run it")
    return graphs[0], graphs[0].decoder
