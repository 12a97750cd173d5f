"""Is a bundle what it should be: its text, weights and numbers against what others than adaptc make of its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from adaptc.evaluation.reference import source_of
from adaptc.evaluation.routes import routes_of
from adaptc.ir.fx_graph import FxGraph
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.model.plan import is_encoder, is_modal
from adaptc.runtime.progress import SILENT, Progress
from adaptc.verification.kinds.encoders import verify_encoder
from adaptc.verification.kinds.gates import gate_parts
from adaptc.verification.kinds.images import image_parts
from adaptc.verification.kinds.modal import verify_modal
from adaptc.verification.kinds.source import ends_parts, load_source, text_parts
from adaptc.verification.kinds.steps import (
    Verification,
    decoder_spec_of,
    long_prompt,
    number_parts,
    numbers_part,
    predictions,
    prompts_of,
    weights_part,
    window_parts,
)
from adaptc.verification.outside import TorchModel
from adaptc.verification.parity import LOWERING, compare, samples_of
from adaptc.verification.part import Part
from adaptc.verification.rewritten import GraphModel, Rewritten, with_stored
from adaptc.verification.rounded import put_weights, views_of
from adaptc.verification.stored_weights import stored_weights


def verify_bundle(
    bundle: Bundle,
    base: Path,
    routes: Sequence[str] = (),
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Verification:
    """Compare a bundle with its source.

    Args:
        bundle: An opened bundle.
        base: The folder that paths in its spec start from.
        routes: Of a stitched bundle; all if none is named.
        threads: Threads of both.
        progress: Told of stages and steps.

    Raises:
        LoadError: a source is not there or has changed, or torch is missing.
        EngineError: the bundle cannot be run.
        RequestError: there is no such route.
        BundleError: it is of a kind that has nothing to compare.
    """
    if is_modal(bundle.manifest):
        return verify_modal(bundle, base, threads, progress)
    if is_encoder(bundle.manifest):
        return verify_encoder(bundle, base, threads, progress)
    chosen = routes_of(bundle, routes)
    if chosen:
        return _verify_routes(bundle, base, chosen, threads, progress)
    return _verify_model(bundle, base, threads, progress)


def _verify_model(bundle: Bundle, base: Path, threads: int | None, progress: Progress) -> Verification:
    """A bundle of one decoder."""
    room, source = decoder_spec_of(bundle).max_tokens, source_of(bundle, base)
    progress.stage("tokenizer and chat template")
    tokenizer, parts = text_parts(bundle, source, threads)
    parts += image_parts(bundle, source)
    progress.stage("source model")
    loaded = load_source(source, prompts_of(bundle, tokenizer), threads)
    reference = TorchModel(loaded.model, threads)
    config = loaded.model.config
    samples = samples_of(reference, prompts_of(bundle, tokenizer, long_prompt(config, room)))
    expected = [reference.predictions(sample) for sample in samples]
    progress.stage("bundle")
    shipped = predictions(bundle, samples, threads, exact=False)
    exact = predictions(bundle, samples, threads, exact=True)
    progress.stage("source model with the bundle's weights")
    stored = stored_weights(bundle)
    errors = put_weights(loaded.model, stored, views_of(loaded.model, stored))
    rounded = [reference.predictions(sample) for sample in samples]
    numbers, whole = number_parts(bundle, loaded.by, shipped, exact, expected, rounded)
    parts += [
        *ends_parts(bundle, source, loaded),
        *loaded.parts,
        weights_part(errors, loaded.by, source.dtype),
        *numbers,
        *window_parts(config, room),
    ]
    if bundle.manifest.gates:
        parts += gate_parts(bundle, base, stored, samples, expected, threads, progress)
    return Verification(tuple(parts), {"": whole})


def _verify_routes(
    bundle: Bundle, base: Path, routes: Sequence[str], threads: int | None, progress: Progress
) -> Verification:
    """A stitched bundle: what is captured against transformers, each route against the layers it is made of."""
    rewritten = Rewritten.of(bundle, base, threads, progress)
    tokenizer, parts = text_parts(bundle, next(iter(rewritten.sources.values())), threads)
    prompts = prompts_of(bundle, tokenizer)
    for name in rewritten.sources:
        parts += _capture_parts(rewritten, name, prompts, threads, progress)
    stored, parities = stored_weights(bundle), {}
    by = "the spec's layers and stitches, run by torch"
    for route in routes:
        progress.stage(f"route {route}")
        reference = GraphModel(rewritten.route(route))
        samples = samples_of(reference, prompts)
        rounded = [with_stored(graph, stored) for graph in reference.graphs]
        numbers, parities[route] = number_parts(
            bundle,
            by,
            predictions(bundle, samples, threads, route, exact=False),
            predictions(bundle, samples, threads, route, exact=True),
            [reference.predictions(sample) for sample in samples],
            [GraphModel(tuple(graph for graph, _ in rounded)).predictions(sample) for sample in samples],
            route,
        )
        read_as = next(iter(rewritten.sources.values())).dtype
        errors = [error for _, found in rounded for error in found]
        parts += [weights_part(errors, by, read_as, route), *numbers]
    return Verification(tuple(parts), parities)


def _capture_parts(
    rewritten: Rewritten, name: str, prompts: Sequence[Sequence[int]], threads: int | None, progress: Progress
) -> list[Part]:
    """What was captured of a model, before any pass, against the model as transformers runs it."""
    progress.stage(f"source model {name}")
    loaded = load_source(rewritten.sources[name], prompts, threads)
    reference = TorchModel(loaded.model, threads)
    samples = samples_of(reference, prompts)
    captured = GraphModel((rewritten.captured.graph(name, FxGraph),))
    parity = compare(
        [captured.predictions(sample) for sample in samples], [reference.predictions(sample) for sample in samples]
    )
    said = [replace(part, name=f"{part.name} {name}") for part in loaded.parts]
    return [*said, numbers_part(f"capture of {name}", loaded.by, parity, LOWERING)]
