"""From a bundle on disk to a session."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from adaptc.runtime.backends.engine import Engine
from adaptc.runtime.backends.onnxruntime_cpu.decoder import Decoder, state_width
from adaptc.runtime.backends.onnxruntime_cpu.engine import OrtEngine
from adaptc.runtime.backends.onnxruntime_cpu.packed import check_packed
from adaptc.runtime.backends.onnxruntime_cpu.routed import Routes, Tail
from adaptc.runtime.backends.onnxruntime_cpu.twins import Kind, Twins
from adaptc.runtime.bundle.folder import Bundle, open_bundle
from adaptc.runtime.bundle.manifest import DecoderSpec, Manifest, PlanStep, SwitchStep
from adaptc.runtime.errors import BundleError, RequestError
from adaptc.runtime.generation.request import check_count
from adaptc.runtime.generation.session import Session
from adaptc.runtime.model.budget import batched_dense, check_budget
from adaptc.runtime.model.router import router_of
from adaptc.runtime.model.rows import Rows
from adaptc.runtime.multimodal.grid_images import GridImages
from adaptc.runtime.multimodal.images import IMAGES, Images, read_image_spec
from adaptc.runtime.multimodal.profile import read_profile
from adaptc.runtime.multimodal.session import ModalSession
from adaptc.runtime.multimodal.subsets import ModalGraphs
from adaptc.runtime.text.tokenizer import Tokenizer

_MOST_THREADS = 1024  # more is a slip of the keyboard, and starting them would exhaust the machine


def load(
    path: str | Path,
    device: str = "auto",
    *,
    threads: int | None = None,
    batch: int | None = None,
    chunk: int = 512,
    verify: bool = True,
    budget: float | None = None,
) -> Session:
    """Open a bundle and make it ready to run.

    Args:
        path: The bundle's folder.
        device: "cpu", "gpu", or "auto" for the one that the bundle was compiled for.
        threads: Threads that work on one step; by default the physical cores.
        batch: Most sequences written at the same time; by default what the bundle was compiled for.
        chunk: Most tokens of a prompt read at once; fewer need less memory, more are quicker.
        verify: Compare every file's sha256 with the manifest's.
        budget: Of requests that name none, from 0 (cheapest) to 1 (dense), for bundles with gates or a router; None
            skips nothing, and routes as the router was calibrated to.

    Raises:
        BundleError: no bundle there, or it is damaged.
        EngineError: the engine is not installed or refuses the graph.
        RequestError: a value is out of range, or the KV cache does not fit in memory.
    """
    if device not in ("auto", "cpu", "gpu"):
        raise RequestError(f"device: {device!r}; there are: auto, cpu, gpu")
    if threads is not None:
        check_count("threads", threads, most=_MOST_THREADS)
    if budget is not None:
        check_budget(budget)
    bundle = open_bundle(path, verify)
    backend = bundle.manifest.target.backend
    kind = "cpu" if backend == "onnxruntime" else "gpu"
    if device not in ("auto", kind):
        raise RequestError(f"device: {device!r}; {path} was compiled for {backend}: its device is {kind!r}")
    if is_modal(bundle.manifest):
        # Which of the two it is, only the bundle knows; callers that do call `load_modal`.
        return cast("Session", _modal_session(bundle, threads, cache_bytes=64 << 20))
    name, decoder = _decoder_graph(bundle.manifest, str(path))
    folder = bundle.path / "tokenizer"
    tokenizer = Tokenizer(folder) if folder.exists() else None
    batch = bundle.manifest.target.batch if batch is None else batch
    gates = bundle.manifest.gates.get(name)
    if kind == "gpu":
        from adaptc.runtime.backends.cuda.loading import gpu_decoder

        check_count("batch", batch)
        check_count("chunk", chunk)
        rows = gpu_decoder(bundle, batch, chunk)
        return Session(rows, decoder, tokenizer, batch=batch, chunk=chunk, gates=gates, budget=budget)
    if verify:
        check_packed(bundle.path / "graphs")
    engine = _decoder_engine(bundle, name, threads, budget, batch)
    routes = _routes(bundle, threads)
    modal, images = bundle.manifest.modal.get(name), _images(bundle, name, threads)
    return Session(
        *(engine, decoder, tokenizer),
        batch=batch,
        chunk=chunk,
        gates=gates,
        budget=budget,
        routes=routes,
        modal=modal,
        images=images,
    )


def load_rows(
    bundle: Bundle, threads: int | None = None, batch: int = 1, chunk: int = 512, budget: float | None = None
) -> Rows:
    """The decoder of a bundle for ONNX Runtime by itself, its routes included: what a session writes with.

    Args:
        bundle: An opened bundle; its hashes are not looked at again.
        threads: As for `load`.
        batch: As for `load`.
        chunk: As for `load`.
        budget: As for `load`, which of two graphs is loaded goes by it; what is asked of the decoder says its own.

    Raises:
        BundleError: its plan is not one decoder.
        EngineError: the engine is not installed or refuses a graph.
        RequestError: the KV cache does not fit in memory.
    """
    name, decoder = _decoder_graph(bundle.manifest, str(bundle.path))
    engine, routes = _decoder_engine(bundle, name, threads, budget, batch), _routes(bundle, threads)
    rows = Decoder(engine, decoder, batch, chunk, bundle.manifest.gates.get(name))
    return rows if routes is None else routes.decoder(rows, chunk)


def load_modal(
    path: str | Path, *, threads: int | None = None, cache_bytes: int = 64 << 20, verify: bool = True
) -> ModalSession:
    """Open a bundle of a model that runs on subsets of its modalities; `load` gives the same for such a bundle.

    Args:
        path: The bundle's folder.
        threads: Threads that work on one run; by default the physical cores.
        cache_bytes: Most bytes of features that are kept for inputs that come again; 0 keeps none.
        verify: Compare every file's sha256 with the manifest's.

    Raises:
        BundleError: no bundle there, it is damaged, or its model is no such one.
        RequestError: a value is out of range.
    """
    if threads is not None:
        check_count("threads", threads, most=_MOST_THREADS)
    if cache_bytes:
        check_count("cache_bytes", cache_bytes)
    bundle = open_bundle(path, verify)
    if not is_modal(bundle.manifest):
        if bundle.manifest.modal:
            raise BundleError(f"{path}: a language model: load, and generate with images= or without, are right")
        raise BundleError(f"{path}: has no modalities to leave out; drop_modality makes a bundle that has")
    return _modal_session(bundle, threads, cache_bytes)


def is_modal(manifest: Manifest) -> bool:
    """Whether its model is asked once for each input; a language model that kept its text only writes as any other."""
    return bool(manifest.modal) and all(graph.decoder is None for graph in manifest.graphs.values())


def _modal_session(bundle: Bundle, threads: int | None, cache_bytes: int) -> ModalSession:
    manifest = bundle.manifest
    [(_, modal)] = manifest.modal.items()
    graphs = ModalGraphs(modal, lambda name: _engine(bundle, name, threads), cache_bytes)
    readers = [*(each.encoder for each in modal.modalities.values()), *(each.graph for each in modal.subsets)]
    inputs = {tensor.name: tensor for name in readers if name for tensor in manifest.graphs[name].inputs}
    folder = bundle.path / "tokenizer"
    tokenizer = Tokenizer(folder) if folder.exists() else None
    return ModalSession(modal, graphs, inputs, tokenizer, read_profile(bundle.path))


def _engine(bundle: Bundle, name: str, threads: int | None) -> Engine:
    """What runs a graph that continues no sequence."""
    if bundle.manifest.target.backend == "onnxruntime":
        return OrtEngine(bundle.path / bundle.manifest.graphs[name].file, threads)
    from adaptc.runtime.backends.cuda.loading import gpu_engine

    return gpu_engine(bundle, name)


def _decoder_engine(bundle: Bundle, name: str, threads: int | None, budget: float | None, batch: int) -> Engine:
    """What runs the first graph of a decoder; of two, with gates and without, what the session is likely to use."""
    graphs, gates = bundle.manifest.graphs, bundle.manifest.gates.get(name)
    graph = graphs[name]
    if gates is None or not gates.dense:
        return OrtEngine(bundle.path / graph.file, threads)
    files: dict[Kind, str] = {"gated": graph.file, "dense": graphs[gates.dense].file}
    skips = (gates.budget if budget is None else budget) < 1
    asked: dict[Kind, bool] = {"gated": skips, "dense": not skips or batched_dense(gates, batch)}
    wanted = tuple(kind for kind in files if asked[kind])
    return Twins(graph.inputs, graph.outputs, lambda kind: OrtEngine(bundle.path / files[kind], threads), wanted)


def _decoder_graph(manifest: Manifest, where: str) -> tuple[str, DecoderSpec]:
    """Name of the graph that reads token ids, which is the plan's first but for encoders."""
    encoders = {each.encoder for modal in manifest.modal.values() for each in modal.modalities.values()}
    first, *rest = (step for step in manifest.plan if step.graphs[0] not in encoders)
    graph = manifest.graphs[first.graphs[0]]
    whole = not rest or (len(rest) == 1 and isinstance(rest[0], SwitchStep))
    if not whole or not isinstance(first, PlanStep) or graph.decoder is None:
        raise BundleError(f"{where}: its plan is not one decoder, with or without routes; a newer adaptc may run it")
    return first.run, graph.decoder


def _images(bundle: Bundle, model: str, threads: int | None) -> Images | None:
    """What puts images into a language model's prompts; its encoder is read from disk when it first runs."""
    modal = bundle.manifest.modal.get(model)
    found = [] if modal is None else [(name, each) for name, each in modal.modalities.items() if each.encoder]
    if modal is None or not found:
        return None
    [(name, modality)] = found
    file, graphs = bundle.path / IMAGES, bundle.manifest.graphs
    if IMAGES not in bundle.manifest.files:
        raise BundleError(f"{file}: is missing; compile again")
    spec = read_image_spec(file.read_bytes(), str(file))
    encoders = ModalGraphs(modal, lambda graph: OrtEngine(bundle.path / graphs[graph].file, threads))
    kind = Images if spec.grid is None else GridImages
    return kind(spec, name, encoders, graphs[str(modality.encoder)])


def _routes(bundle: Bundle, threads: int | None) -> Routes | None:
    """What follows the first graph of a stitched bundle."""
    switch = bundle.manifest.switch
    if switch is None:
        return None
    tails: dict[str, Tail] = {}
    for route, record in switch.routes.items():
        graph = bundle.manifest.graphs[record.graph]
        if graph.decoder is None:
            raise BundleError(f"{bundle.path}: route {route!r}: its graph is no decoder; compile again")
        engine = OrtEngine(bundle.path / graph.file, threads)
        tails[route] = Tail(engine, graph.decoder, bundle.manifest.gates.get(record.graph))
    [trunk] = bundle.manifest.plan[0].graphs
    width = state_width(bundle.manifest.graphs[trunk].outputs)
    assert width is not None
    return Routes(tails, width, router_of(bundle, switch))
