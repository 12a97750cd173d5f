"""How weights are stored where a spec does not say: as their sources have them, where these are quantized folders."""

from __future__ import annotations

from pathlib import Path

from adaptc.errors import LoadError
from adaptc.sources.find import find_source
from adaptc.spec.schema import Spec, TargetSpec


def with_default_weights(spec: Spec, base: Path) -> Spec:
    """Return the spec with `target.weights: source` where it says nothing else and every source is quantized.

    Who names a checkpoint of 4 bits has chosen what it costs: its codes are kept. Not those of a GGUF file: blocks with
    minima, which most of these have, have no kernels on a GPU, and `int4` is quicker on a CPU. A source that cannot be
    read changes nothing here; whoever reads it further says what is wrong with it. Nor is a spec changed that says
    how codes are chosen.

    Args:
        spec: As it was read.
        base: Folder that relative paths start from: the spec's.
    """
    target = spec.target
    if "weights" in target.model_fields_set or target.backend != "onnxruntime" or spec.quantize is not None:
        return spec
    try:
        for model in spec.models.values():
            if model.source.endswith(".gguf") or find_source(model, base).quantization() is None:
                return spec
    except LoadError:
        return spec
    given = target.model_dump(include=target.model_fields_set)
    return spec.model_copy(update={"target": TargetSpec(**given, weights="source")})
