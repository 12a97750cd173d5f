"""A model that runs on subsets of its modalities: every subset, and the whole against the factory's own module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.errors import BundleError
from adaptc.ir.fx_graph import FxGraph
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.manifest import ModalSpec
from adaptc.runtime.loading import BACKENDS
from adaptc.runtime.multimodal.subsets import ModalGraphs
from adaptc.runtime.progress import Progress
from adaptc.sources.module import ModuleSource
from adaptc.verification.bundle_model import EXACT
from adaptc.verification.kinds.steps import Verification, is_exact, weights_part
from adaptc.verification.parity import LOWERING, USUAL_LOGIT
from adaptc.verification.part import Part, judged
from adaptc.verification.rewritten import Rewritten, with_stored
from adaptc.verification.stored_weights import stored_weights

Arrays = Mapping[str, npt.NDArray[Any]]

_FACTORY = "the factory's module, run by torch"
_REWRITTEN = "the spec's passes over the factory's module, run by torch, with the bundle's weights"


def verify_modal(bundle: Bundle, base: Path, threads: int | None, progress: Progress) -> Verification:
    """Compare a bundle of a factory's model, on the factory's own examples.

    Args:
        bundle: An opened bundle whose graphs run once for each input.
        base: The folder that paths in its spec start from.
        threads: Threads of both.
        progress: Told of stages and steps.

    Raises:
        LoadError: the source is not there or has changed, or torch is missing.
        BundleError: it is no factory's model.
    """
    import torch

    rewritten = Rewritten.of(bundle, base, threads, progress)
    [(name, source)] = rewritten.sources.items()
    if not isinstance(source, ModuleSource):
        raise BundleError(f"{bundle.path}: not a decoder, and not made by a factory; there is nothing to compare")
    progress.stage("factory")
    module, examples = source.build()
    inputs = {key: value.numpy() for key, value in examples.items()}
    with torch.no_grad():
        given = module(**examples)
    captured = rewritten.captured.graph(name, FxGraph)
    said = captured.run(inputs)
    outputs = given if isinstance(given, Mapping) else dict(zip(said, [given], strict=True))
    whole = {key: value.numpy() for key, value in outputs.items()}
    parts = [_arrays_part("capture", _FACTORY, said, whole, judge=True)]
    progress.stage("subsets")
    stored, errors = stored_weights(bundle), []
    graphs = {}
    for graph in bundle.manifest.graphs:
        graphs[graph], found = with_stored(rewritten.graph(graph), stored)
        errors += found
    parts.append(weights_part(list({each.name: each for each in errors}.values()), _FACTORY, source.dtype))
    [modal] = bundle.manifest.modal.values()
    backend = (EXACT if is_exact(bundle) else BACKENDS)[bundle.manifest.target.backend]
    running = ModalGraphs(modal, lambda graph: backend.engine(bundle, graph, threads), 0)
    try:
        for subset in modal.subsets:
            of = {each: {key: inputs[key] for key in modal.modalities[each].inputs} for each in subset.modalities}
            ours = running.run(subset.modalities, of)
            expected = _subset(graphs, modal, subset.modalities, subset.graph, inputs)
            called = "+".join(subset.modalities)
            parts.append(_arrays_part(f"lowering of {called}", _REWRITTEN, ours, expected, judge=True))
            parts.append(_arrays_part(f"loss of {called}", _FACTORY, ours, whole, judge=False))
    finally:
        running.close()
    return Verification(tuple(parts), {})


def _subset(
    graphs: Mapping[str, FxGraph], modal: ModalSpec, modalities: tuple[str, ...], graph: str, inputs: Arrays
) -> Arrays:
    """What the rewritten graphs give for some modalities."""
    feeds: dict[str, npt.NDArray[Any]] = {}
    for name in modalities:
        spec = modal.modalities[name]
        own = {key: inputs[key] for key in spec.inputs}
        feeds |= own if spec.encoder is None else graphs[spec.encoder].run(own)
    return graphs[graph].run(feeds)


def _arrays_part(name: str, reference: str, found: Arrays, expected: Arrays, *, judge: bool) -> Part:
    """Compare outputs by name; `judge` if they are to be the same."""
    error = float(np.max([np.abs(found[key] - value).max() for key, value in expected.items()]))
    size = float(max(np.abs(value).max() for value in expected.values()))
    most = (LOWERING.max_logit_error or 0.0) * max(1.0, size / USUAL_LOGIT)
    faults = [f"a number is off by {error:.2g}, at most {most:.2g} may be"] if judge and not error <= most else []
    return judged(name, reference, faults, {"max_logit_error": error, "largest_logit": size})
