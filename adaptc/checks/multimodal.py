"""Can models of several modalities be compiled as the spec asks? From their configs, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from adaptc.checks.finding import Finding
from adaptc.errors import SpecError
from adaptc.families.model import multimodal_of
from adaptc.sources.module import ModuleSource
from adaptc.spec.passes import build_passes
from adaptc.spec.schema import Spec

if TYPE_CHECKING:
    from adaptc.passes.drop_modality.drop_modality import DropModality

_NEEDED = "drop_modality: {modalities: {image: [pixel_values], text: [input_ids]}, stand_in: empty}"


def multimodal_faults(spec: Spec, configs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what stands in the way of a spec's multimodal language models: a model's name and a sentence each.

    Args:
        spec: What would be compiled.
        configs: By model name, the configs that could be read.
    """
    for name, config in configs.items():
        if multimodal_of(config) is None:
            continue
        try:
            pass_ = _pass(spec, name)
        except SpecError as error:
            yield name, str(error)
            return
        if pass_ is None:
            yield name, f"{config.model_type} takes images, and no pass says what becomes of them; {_NEEDED} is right"
        elif spec.target.backend != "onnxruntime" and keeps_images(spec, name):
            yield name, f"{spec.target.backend} runs no images yet; keep: [[text]] or backend: onnxruntime is right"


def keeps_images(spec: Spec, name: str) -> bool:
    """Return whether a model's bundle keeps its image encoder."""
    try:
        pass_ = _pass(spec, name)
    except SpecError:
        return True
    return pass_ is None or any(len(subset) > 1 for subset in pass_.subsets())


def image_findings(name: str, config: Any, spec: Spec) -> Iterator[Finding]:
    """Yield what `adaptc check` says of a language model that takes images; nothing of any other."""
    family = multimodal_of(config)
    if family is None:
        return
    encoder = config.vision_config
    layers = getattr(encoder, family.encoder_depth)
    yield Finding(name, "ok", f"{config.model_type}: images through {encoder.model_type}, {layers} layers")
    for _, fault in multimodal_faults(spec, {name: config}):
        yield Finding(name, "error", fault)


def module_findings(name: str, source: ModuleSource, spec: Spec) -> Iterator[Finding]:
    """Yield what `adaptc check` says of a model that a function builds; the function is not run.

    Raises:
        LoadError: it has no tokenizer where the spec names one.
    """
    count = len(source.shapes())
    text = ", reads text" if source.tokenizer_files() else ""
    yield Finding(name, "ok", f"built by {source.function} in {source.path.name}, {count} weights{text}")
    try:
        if _pass(spec, name) is None:
            fault = "no pass drop_modality says what its inputs are; the runtime runs no such bundle"
            yield Finding(name, "warn", fault)
    except SpecError as error:
        yield Finding(name, "error", str(error))


def _pass(spec: Spec, name: str) -> DropModality | None:
    """Return the spec's `drop_modality` of a model, or None.

    Raises:
        SpecError: the passes cannot be built.
    """
    from adaptc.passes.drop_modality.drop_modality import DropModality

    passes = (each for each in build_passes(spec) if isinstance(each, DropModality) and each.model in (None, name))
    return next(passes, None)
