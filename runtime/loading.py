"""From a bundle on disk to a session."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import cast

from adaptc.runtime.backends.backend import Backend, DecoderOptions
from adaptc.runtime.backends.cuda.bundle_partitions import has_steps
from adaptc.runtime.backends.cuda.driver.cuda import gpu_at_hand
from adaptc.runtime.backends.onnxruntime_cpu.backend import OnnxRuntimeCpu
from adaptc.runtime.backends.onnxruntime_cuda.backend import OnnxRuntimeCuda
from adaptc.runtime.backends.onnxruntime_cuda.loading import LEAST_SM
from adaptc.runtime.backends.tensorrt.backend import TensorRt
from adaptc.runtime.bundle.folder import Bundle, open_bundle, opening
from adaptc.runtime.bundle.manifest import ModalSpec
from adaptc.runtime.bundle.names import ENCODER, IMAGES, TOKENIZER
from adaptc.runtime.encoding.session import EncoderSession
from adaptc.runtime.encoding.spec import read_encoder_spec
from adaptc.runtime.errors import BundleError, ReplacedError
from adaptc.runtime.generation.load_control import LoadTargets
from adaptc.runtime.generation.option_checks import BudgetRules
from adaptc.runtime.generation.scheduler import Limits
from adaptc.runtime.generation.session import Session
from adaptc.runtime.load_options import LoadOptions, device_index, device_kind, folder_of, for_cpu_only
from adaptc.runtime.model.decoder import BatchDecoder
from adaptc.runtime.model.plan import decoder_graph, is_encoder, is_modal
from adaptc.runtime.multimodal.grid_images import GridImages
from adaptc.runtime.multimodal.images import Images, read_image_spec
from adaptc.runtime.multimodal.profile import read_profile
from adaptc.runtime.multimodal.session import ModalSession
from adaptc.runtime.multimodal.subsets import ModalGraphs
from adaptc.runtime.speculation.speculation import OFF
from adaptc.runtime.speculation.starting import speculation_of
from adaptc.runtime.text.tokenizer import Tokenizer

BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {
        "onnxruntime": OnnxRuntimeCpu(),
        "onnxruntime-cuda": OnnxRuntimeCuda(),
        "tensorrt": TensorRt(),
        "tensorrt-rtx": TensorRt(),
    }
)
"""What runs bundles, by the name that their manifest has in `target.backend`; "-cuda" for its bundles on a GPU."""

PREFIX_BYTES = 256 << 20
"""Kept for prompts that begin alike, if nobody says how much."""

DEFAULTS = LoadOptions(device="cpu")
"""Of a decoder by itself, which nobody named a device for."""

_SERVED = 8  # sequences that a CPU decodes together for clients: memory for the KV cache of each is taken at once
_CHUNK = 512
_PIECE = 64  # prompt tokens read in a step beside others: as quick as more on a CPU, and a fraction of a second
_FEATURE_BYTES = 64 << 20
_TRIES = 5  # at a bundle that other processes replace while it is loaded


def load(
    path: str | Path,
    device: str = "auto",
    *,
    threads: int | None = None,
    batch: int | None = None,
    chunk: int | None = None,
    cache_bytes: int | None = None,
    prefix_bytes: int | None = None,
    verify: bool = True,
    budget: float | None = None,
    max_loss: float | None = None,
    unpaid: str | None = None,
    load_targets: LoadTargets | None = None,
    routes: Sequence[str] | None = None,
    speculate: str | None = None,
    backends: Mapping[str, Backend] = BACKENDS,
) -> Session:
    """Open a bundle and make it ready to run; options that a bundle of its kind does not have are refused.

    Args:
        path: The bundle's folder.
        device: "cpu", "cuda" for the first GPU ("gpu" is the same), "cuda:1" and so on for others; or "auto": a GPU, if
            there is one that runs the bundle and no option is given that a CPU alone has.
        threads: Threads that work on one step, from 1, on a CPU; None for the physical cores.
        batch: The largest number of sequences decoded at the same time, from 1; None for what the bundle was compiled
            for.
        chunk: The largest number of prompt tokens read at once, from 1; fewer need less memory, more are quicker. None
            for 512.
        cache_bytes: The largest size, in bytes, of the features of images and other inputs that are kept for when they
            come again; 0 keeps none, None up to 64 MiB.
        prefix_bytes: The largest size, in bytes, of the keys and values that are kept for prompts which begin like
            earlier ones, as the turns of a chat do; 0 keeps none, None up to 256 MiB. For language models on a CPU.
        verify: Whether every file's sha256 is compared with the manifest's; weights are while the engine loads. Without
            it only names and sizes are, and a session's `verified` says so.
        budget: Default budget for requests without one, from 0 (cheapest) to 1 (dense), for bundles with gates or a
            router; None skips nothing, and routes as the router was calibrated to.
        max_loss: In the place of a budget, see `Request`.
        unpaid: What happens to a budget that skips too little to be quicker than no gates, see `BudgetRules`.
        load_targets: Times that are kept under load by lowering budgets, each down to its request's `min_budget`, for
            bundles with gates or a router; None lowers none.
        routes: The only routes of a stitched bundle to load, on a CPU; their layers alone take memory. Requests then
            name one of them or take the first: the router needs all, which None loads.
        speculate: How next tokens are guessed for requests that do not say, see `Request`; None guesses nothing, for no
            request. Otherwise steps are timed now and verifications compared with them, which takes some steps' time,
            and graphs that verify are loaded: their weights take memory of their own unless `adaptc build` packed them.
        backends: What runs bundles, by backend name.

    Raises:
        BundleError: there is no bundle, it is damaged, or no backend runs it.
        EngineError: the engine is not installed or refuses the graph.
        RequestError: an option is out of range or has no meaning for this bundle, or the KV cache does not fit in
            memory.
    """
    options = LoadOptions(
        device=device,
        threads=threads,
        batch=batch,
        chunk=chunk,
        cache_bytes=cache_bytes,
        prefix_bytes=prefix_bytes,
        verify=verify,
        budget=budget,
        max_loss=max_loss,
        unpaid=unpaid,
        load_targets=load_targets,
        routes=routes,
        speculate=speculate,
    )
    # Only the bundle knows which of the two it is; callers who know as well call `load_modal`.
    return cast("Session", _loaded(folder_of(path), options, backends, _session))


def load_modal(
    path: str | Path,
    *,
    threads: int | None = None,
    cache_bytes: int | None = None,
    verify: bool = True,
    backends: Mapping[str, Backend] = BACKENDS,
) -> ModalSession:
    """Open a bundle of a model that runs on subsets of its modalities; `load` gives the same for such a bundle.

    Args:
        path: The bundle's folder.
        threads: As for `load`.
        cache_bytes: As for `load`.
        verify: As for `load`.
        backends: What runs bundles, by backend name.

    Raises:
        BundleError: there is no bundle, it is damaged, its model is of another kind, or no backend runs it.
        RequestError: an option is out of range or has no meaning for this bundle.
    """
    options = LoadOptions(threads=threads, cache_bytes=cache_bytes, verify=verify)
    return cast("ModalSession", _loaded(folder_of(path), options, backends, _only_modal))


def load_encoder(
    path: str | Path, *, threads: int | None = None, verify: bool = True, backends: Mapping[str, Backend] = BACKENDS
) -> EncoderSession:
    """Open a bundle of an encoder; `load` gives the same for such a bundle.

    Args:
        path: The bundle's folder.
        threads: As for `load`.
        verify: As for `load`.
        backends: What runs bundles, by backend name.

    Raises:
        BundleError: there is no bundle, it is damaged, its model is of another kind, or no backend runs it.
        RequestError: an option is out of range or has no meaning for this bundle.
    """
    options = LoadOptions(threads=threads, verify=verify)
    return cast("EncoderSession", _loaded(folder_of(path), options, backends, _only_encoder))


def runs_on_gpu(bundle: Bundle) -> bool:
    """Whether a bundle was compiled for a GPU."""
    backend = BACKENDS.get(bundle.manifest.target.backend)
    return backend is not None and backend.device == "gpu"


def served_batch(bundle: Bundle) -> int:
    """Sequences that a server decodes together if nobody says: on a GPU kernels are made for so many."""
    compiled = bundle.manifest.target.batch
    backend = BACKENDS.get(bundle.manifest.target.backend)
    return max(compiled, _SERVED) if backend is not None and backend.device == "cpu" else compiled


def tokenizer_of(bundle: Bundle) -> Tokenizer | None:
    """The tokenizer of an opened bundle; None if it has none.

    Raises:
        BundleError: its files are damaged.
    """
    files = bundle.below(TOKENIZER)
    return Tokenizer(files, str(bundle.path / TOKENIZER)) if files else None


def load_tokenizer(path: str | Path, *, verify: bool = True) -> Tokenizer:
    """The tokenizer of a bundle by itself: no engine is needed, and no weights are read into memory.

    Args:
        path: The bundle's folder.
        verify: Whether every file's sha256 is compared with the manifest's.

    Raises:
        BundleError: there is no bundle, it is damaged, or it has no tokenizer.
    """
    tokenizer = tokenizer_of(open_bundle(folder_of(path), verify))
    if tokenizer is None:
        raise BundleError(f"{path}: has no tokenizer; its prompts are token ids")
    return tokenizer


def load_decoder(
    bundle: Bundle, options: DecoderOptions | None = None, backends: Mapping[str, Backend] = BACKENDS
) -> BatchDecoder:
    """The decoder of a bundle by itself, its routes included: what a session writes with.

    Args:
        bundle: An opened bundle; its hashes are not compared again.
        options: How it is loaded; `options.budget` decides which of two graphs is loaded first, and requests to the
            decoder carry their own budget.
        backends: What runs bundles, by backend name.

    Raises:
        BundleError: its plan is not one decoder, or no backend runs it.
        EngineError: the engine is not installed or refuses a graph.
        RequestError: a number is out of range, or the KV cache does not fit in memory.
    """
    return _backend(bundle, backends).decoder(bundle, options or DecoderOptions())


AnySession = Session | ModalSession | EncoderSession
Make = Callable[[Bundle, Backend, LoadOptions], AnySession]


def _loaded(path: Path, options: LoadOptions, backends: Mapping[str, Backend], make: Make) -> AnySession:
    """A session of the bundle that is in a place when it has been loaded."""
    for _ in range(_TRIES):
        with contextlib.suppress(ReplacedError):
            return _loaded_once(path, options, backends, make)
    return _loaded_once(path, options, backends, make)


def _loaded_once(path: Path, options: LoadOptions, backends: Mapping[str, Backend], make: Make) -> AnySession:
    with contextlib.ExitStack() as failed:
        with opening(path, options.verify) as bundle:
            backend = _backend(bundle, backends, options)
            options.check(bundle, backend.device)
            session = make(bundle, backend, options)
            failed.callback(session.close)
        failed.pop_all()
    return session


def _session(bundle: Bundle, backend: Backend, options: LoadOptions) -> AnySession:
    if is_modal(bundle.manifest):
        return _modal_session(bundle, backend, options)
    if is_encoder(bundle.manifest):
        return _encoder_session(bundle, backend, options)
    name, spec = decoder_graph(bundle)
    if options.verify:
        backend.check(bundle)
    # The tokenizer comes first: an engine gives back free memory once it has loaded, what parsing one left included.
    tokenizer = tokenizer_of(bundle)
    batch = bundle.manifest.target.batch if options.batch is None else options.batch
    chunk = _CHUNK if options.chunk is None else options.chunk
    prefixes = PREFIX_BYTES if options.prefix_bytes is None else options.prefix_bytes
    targets = options.load_targets
    asked = 0.0 if options.max_loss is not None else options.budget
    likely = asked if targets is None else 0.0  # under load nobody shall wait for a graph to be loaded
    held = tuple(options.routes or ())
    spare = batch if options.speculate is not None and options.speculate != OFF else 0
    decoder = backend.decoder(bundle, DecoderOptions(batch, chunk, options.threads, likely, prefixes, held, spare))
    smaller = partial(backend.draft_decoder, bundle, DecoderOptions(batch, chunk, options.threads))
    try:
        speculation = speculation_of(decoder, options.speculate, smaller, _cheapest(bundle))
    except BaseException:
        decoder.close()
        raise
    return Session(
        decoder,
        tokenizer,
        spec=spec,
        budget=options.budget,
        modal=bundle.manifest.modal.get(name) if backend.takes_images else None,
        images=_images(bundle, name, backend, options) if backend.takes_images else None,
        label=_label(bundle),
        limits=Limits(piece=min(chunk, _PIECE) if backend.device == "cpu" else chunk, alone=chunk),
        load_targets=targets,
        speculation=speculation,
        speculate=options.speculate,
        verified=options.verify,
        rules=BudgetRules(options.max_loss, bundle.manifest.pays_from(name), options.unpaid),
    )


def _cheapest(bundle: Bundle) -> str | None:
    """The route whose steps read the fewest bytes; None for a bundle without routes."""
    costs = [bytes_ for routes in bundle.manifest.route_bytes.values() for bytes_ in routes.items()]
    return min(costs, key=lambda each: each[1])[0] if costs else None


def _only_modal(bundle: Bundle, backend: Backend, options: LoadOptions) -> AnySession:
    check_modal(bundle)
    return _modal_session(bundle, backend, options)


def _only_encoder(bundle: Bundle, backend: Backend, options: LoadOptions) -> AnySession:
    if not is_encoder(bundle.manifest):
        raise BundleError(f"{bundle.path}: no encoder; load is right")
    return _encoder_session(bundle, backend, options)


def _encoder_session(bundle: Bundle, backend: Backend, options: LoadOptions) -> EncoderSession:
    if options.verify:
        backend.check(bundle)
    spec = read_encoder_spec(bundle.read(ENCODER), str(bundle.path / ENCODER))
    tokenizer = tokenizer_of(bundle)
    engine = backend.engine(bundle, bundle.manifest.reader, options.threads)
    return EncoderSession(engine, spec, tokenizer, verified=options.verify, label=_label(bundle))


def check_modal(bundle: Bundle) -> None:
    """Refuse a bundle whose model does not run on subsets of its modalities.

    Raises:
        BundleError: it is such a bundle.
    """
    if is_modal(bundle.manifest):
        return
    if bundle.manifest.modal:
        raise BundleError(f"{bundle.path}: a language model: load, and generate with images= or without, are right")
    raise BundleError(f"{bundle.path}: has no modalities to leave out; drop_modality makes a bundle that has")


def _modal_session(bundle: Bundle, backend: Backend, options: LoadOptions) -> ModalSession:
    manifest = bundle.manifest
    if len(manifest.modal) != 1:
        raise BundleError(f"{bundle.path}: {len(manifest.modal)} models with modalities; a newer adaptc may run it")
    if options.verify:
        backend.check(bundle)
    [modal] = manifest.modal.values()
    graphs = _modal_graphs(bundle, modal, backend, options)
    readers = [*(each.encoder for each in modal.modalities.values()), *(each.graph for each in modal.subsets)]
    inputs = {tensor.name: tensor for name in readers if name for tensor in manifest.graphs[name].inputs}
    profile = read_profile(bundle)
    return ModalSession(modal, graphs, inputs, tokenizer_of(bundle), profile, verified=options.verify)


def _modal_graphs(bundle: Bundle, modal: ModalSpec, backend: Backend, options: LoadOptions) -> ModalGraphs:
    kept = _FEATURE_BYTES if options.cache_bytes is None else options.cache_bytes
    return ModalGraphs(modal, lambda graph: backend.engine(bundle, graph, options.threads), kept)


def _backend(bundle: Bundle, backends: Mapping[str, Backend], options: LoadOptions = DEFAULTS) -> Backend:
    name = bundle.manifest.target.backend
    if name not in backends:
        raise BundleError(f"{bundle.path}: compiled for {name!r}; there are backends for: {', '.join(backends)}")
    on_gpu = backends.get(f"{name}-cuda")
    if on_gpu is None or not _to_gpu(bundle, options):
        return backends[name]
    index = device_index(options.device)
    return replace(on_gpu, index=index) if isinstance(on_gpu, OnnxRuntimeCuda) else on_gpu


def _to_gpu(bundle: Bundle, options: LoadOptions) -> bool:
    """Whether a bundle that runs on both devices goes to a GPU."""
    if options.device != "auto":
        return device_kind(options.device) == "gpu"
    whole = has_steps(bundle) and not bundle.manifest.modal and not for_cpu_only(options)
    return whole and gpu_at_hand(LEAST_SM)


def _label(bundle: Bundle) -> str:
    """The models of a bundle and its engine, for people."""
    models = "+".join(Path(each.source).name for each in bundle.manifest.models.values())
    return f"{models} on {bundle.manifest.target.backend} in {bundle.manifest.target.weights}"


def _images(bundle: Bundle, model: str, backend: Backend, options: LoadOptions) -> Images | None:
    """What puts images into a language model's prompts; its encoder is read from disk when it first runs."""
    modal = bundle.manifest.modal.get(model)
    encoded = [] if modal is None else [(name, each) for name, each in modal.modalities.items() if each.encoder]
    if modal is None or not encoded:
        return None
    if len(encoded) != 1:
        raise BundleError(f"{bundle.path}: {len(encoded)} modalities with an encoder; a newer adaptc may run it")
    [(name, modality)] = encoded
    spec = read_image_spec(bundle.read(IMAGES), str(bundle.path / IMAGES))
    encoders = _modal_graphs(bundle, modal, backend, options)
    kind = Images if spec.grid is None else GridImages
    return kind(spec, name, encoders, bundle.manifest.graphs[str(modality.encoder)])
