"""From a bundle on disk to a session."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import cast

from adaptc.runtime.backends.backend import Backend, DecoderOptions
from adaptc.runtime.backends.onnxruntime_cpu.backend import OnnxRuntimeCpu
from adaptc.runtime.backends.tensorrt.backend import TensorRt
from adaptc.runtime.bundle.folder import Bundle, open_bundle
from adaptc.runtime.bundle.names import IMAGES
from adaptc.runtime.errors import BundleError, RequestError
from adaptc.runtime.generation.session import Session
from adaptc.runtime.model.budget import check_budget
from adaptc.runtime.model.decoder import BatchDecoder
from adaptc.runtime.model.plan import check_budget_fits, decoder_graph, is_modal
from adaptc.runtime.multimodal.grid_images import GridImages
from adaptc.runtime.multimodal.images import Images, read_image_spec
from adaptc.runtime.multimodal.profile import read_profile
from adaptc.runtime.multimodal.session import ModalSession
from adaptc.runtime.multimodal.subsets import ModalGraphs
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.runtime.validation import check_count

BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {"onnxruntime": OnnxRuntimeCpu(), "tensorrt": TensorRt(), "tensorrt-rtx": TensorRt()}
)
"""What runs bundles, by the name that their manifest has in `target.backend`."""

_MOST_THREADS = 1024  # more is a slip of the keyboard, and starting them would exhaust the machine
_FEATURE_BYTES = 64 << 20


def load(
    path: str | Path,
    device: str = "auto",
    *,
    threads: int | None = None,
    batch: int | None = None,
    chunk: int = 512,
    verify: bool = True,
    budget: float | None = None,
    backends: Mapping[str, Backend] = BACKENDS,
) -> Session:
    """Open a bundle and make it ready to run.

    Args:
        path: The bundle's folder.
        device: "cpu", "gpu", or "auto" for the one that the bundle was compiled for.
        threads: Threads that work on one step, from 1; None for the physical cores.
        batch: The largest number of sequences decoded at the same time; None for what the bundle was compiled for.
        chunk: The largest number of prompt tokens read at once; fewer need less memory, more are quicker.
        verify: Whether every file's sha256 is compared with the manifest's.
        budget: Default budget for requests without one, from 0 (cheapest) to 1 (dense), for bundles with gates or a
            router; None skips nothing, and routes as the router was calibrated to.
        backends: What runs bundles, by backend name.

    Raises:
        BundleError: there is no bundle, it is damaged, or no backend runs it.
        EngineError: the engine is not installed or refuses the graph.
        RequestError: a value is out of range, or the KV cache does not fit in memory.
    """
    if device not in ("auto", "cpu", "gpu"):
        raise RequestError(f"device: {device!r}; there are: auto, cpu, gpu")
    if threads is not None:
        threads = check_count("threads", threads, most=_MOST_THREADS)
    if budget is not None:
        budget = check_budget(budget)
    bundle = open_bundle(path, verify)
    backend = _backend(bundle, backends)
    if device not in ("auto", backend.device):
        name = bundle.manifest.target.backend
        raise RequestError(f"device: {device!r}; {path} was compiled for {name}: its device is {backend.device!r}")
    if is_modal(bundle.manifest):
        # Only the bundle knows which of the two it is; callers who know as well call `load_modal`.
        return cast("Session", _modal_session(bundle, backend, threads, _FEATURE_BYTES))
    name, spec = decoder_graph(bundle)
    check_budget_fits(bundle, budget)
    if verify:
        backend.check(bundle)
    batch = bundle.manifest.target.batch if batch is None else batch
    # The tokenizer comes first: an engine gives back free memory once it has loaded, what parsing one left included.
    tokenizer = _tokenizer(bundle)
    decoder = backend.decoder(bundle, DecoderOptions(batch, chunk, threads, budget))
    return Session(
        decoder,
        tokenizer,
        spec=spec,
        budget=budget,
        modal=bundle.manifest.modal.get(name) if backend.takes_images else None,
        images=_images(bundle, name, backend, threads) if backend.takes_images else None,
        label=_label(bundle),
    )


def load_tokenizer(path: str | Path, *, verify: bool = True) -> Tokenizer:
    """The tokenizer of a bundle by itself: no engine is needed, and no weights are read into memory.

    Args:
        path: The bundle's folder.
        verify: Whether every file's sha256 is compared with the manifest's.

    Raises:
        BundleError: there is no bundle, it is damaged, or it has no tokenizer.
    """
    tokenizer = _tokenizer(open_bundle(path, verify))
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


def load_modal(
    path: str | Path,
    *,
    threads: int | None = None,
    cache_bytes: int = _FEATURE_BYTES,
    verify: bool = True,
    backends: Mapping[str, Backend] = BACKENDS,
) -> ModalSession:
    """Open a bundle of a model that runs on subsets of its modalities; `load` gives the same for such a bundle.

    Args:
        path: The bundle's folder.
        threads: Threads that work on one run, from 1; None for the physical cores.
        cache_bytes: The largest size, in bytes, of the features kept for inputs that come again; 0 keeps none.
        verify: Whether every file's sha256 is compared with the manifest's.
        backends: What runs bundles, by backend name.

    Raises:
        BundleError: there is no bundle, it is damaged, its model is of another kind, or no backend runs it.
        RequestError: a value is out of range.
    """
    if threads is not None:
        threads = check_count("threads", threads, most=_MOST_THREADS)
    cache_bytes = check_count("cache_bytes", cache_bytes, least=0)
    bundle = open_bundle(path, verify)
    if not is_modal(bundle.manifest):
        if bundle.manifest.modal:
            raise BundleError(f"{path}: a language model: load, and generate with images= or without, are right")
        raise BundleError(f"{path}: has no modalities to leave out; drop_modality makes a bundle that has")
    return _modal_session(bundle, _backend(bundle, backends), threads, cache_bytes)


def _backend(bundle: Bundle, backends: Mapping[str, Backend]) -> Backend:
    name = bundle.manifest.target.backend
    if name not in backends:
        raise BundleError(f"{bundle.path}: compiled for {name!r}; there are backends for: {', '.join(backends)}")
    return backends[name]


def _tokenizer(bundle: Bundle) -> Tokenizer | None:
    folder = bundle.path / "tokenizer"
    return Tokenizer(folder) if folder.exists() else None


def _label(bundle: Bundle) -> str:
    """The models of a bundle and its engine, for people."""
    models = "+".join(Path(each.source).name for each in bundle.manifest.models.values())
    return f"{models} on {bundle.manifest.target.backend} in {bundle.manifest.target.weights}"


def _modal_session(bundle: Bundle, backend: Backend, threads: int | None, cache_bytes: int) -> ModalSession:
    manifest = bundle.manifest
    [(_, modal)] = manifest.modal.items()
    graphs = ModalGraphs(modal, lambda graph: backend.engine(bundle, graph, threads), cache_bytes)
    readers = [*(each.encoder for each in modal.modalities.values()), *(each.graph for each in modal.subsets)]
    inputs = {tensor.name: tensor for name in readers if name for tensor in manifest.graphs[name].inputs}
    return ModalSession(modal, graphs, inputs, _tokenizer(bundle), read_profile(bundle.path))


def _images(bundle: Bundle, model: str, backend: Backend, threads: int | None) -> Images | None:
    """What puts images into a language model's prompts; its encoder is read from disk when it first runs."""
    modal = bundle.manifest.modal.get(model)
    encoded = [] if modal is None else [(name, each) for name, each in modal.modalities.items() if each.encoder]
    if modal is None or not encoded:
        return None
    [(name, modality)] = encoded
    file = bundle.path / IMAGES
    if IMAGES not in bundle.manifest.files:
        raise BundleError(f"{file}: is missing; compile again")
    spec = read_image_spec(file.read_bytes(), str(file))
    encoders = ModalGraphs(modal, lambda graph: backend.engine(bundle, graph, threads))
    kind = Images if spec.grid is None else GridImages
    return kind(spec, name, encoders, bundle.manifest.graphs[str(modality.encoder)])
