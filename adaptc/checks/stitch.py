"""Can these models be stitched as the spec asks? From their configs and tokenizers, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from adaptc.errors import LoadError, SpecError
from adaptc.sources.vocabulary import hash_of, tokens_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from adaptc.passes.stitch.rules import DecoderFacts
    from adaptc.sources.base import Source
    from adaptc.spec.schema import Spec


def spec_faults(spec: Spec, models: Mapping[str, tuple[Source, PretrainedConfig]]) -> Iterator[str]:
    """Return what stands in the way of a spec's `stitch`, a sentence each; nothing for a spec without one.

    Args:
        spec: What would be compiled.
        models: The models that could be read, with their configs, by name.
    """
    # These import torch.
    from adaptc.passes.stitch.rules import stitch_faults, used_models
    from adaptc.passes.stitch.stitch import Stitch
    from adaptc.spec.passes import build_passes

    try:
        passes = [each for each in build_passes(spec) if isinstance(each, Stitch)]
    except SpecError as error:
        yield str(error)
        return
    if len(passes) > 1:
        yield f"{len(passes)} stitches; one, with as many routes as are wanted, is right"
    for each in passes[:1]:
        used = [name for name in used_models(each.trunk.layers, each.routes) if name in models]
        facts = {name: _facts(*models[name]) for name in used}
        yield from stitch_faults(each.trunk.layers, each.routes, facts, models)


def _facts(source: Source, config: PretrainedConfig) -> DecoderFacts:
    """What the rules of a stitch ask of a decoder, from its config and tokenizer."""
    from adaptc.passes.stitch.rules import DecoderFacts

    try:
        tokens = tokens_of(source)
    except LoadError:
        tokens = {}  # another part of `check` tells what is wrong with the tokenizer
    return DecoderFacts(
        layers=config.num_hidden_layers,
        vocab_size=config.vocab_size,
        vocabulary=hash_of(tokens) if tokens else "",
        rms_norm=getattr(config, "rms_norm_eps", None) is not None,
        tokens=tokens,
    )
