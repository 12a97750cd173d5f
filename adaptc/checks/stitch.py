"""Can these models be stitched as the spec asks? From their configs and tokenizers, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from adaptc.errors import LoadError, SpecError
from adaptc.sources.vocabulary import tokens_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from adaptc.passes.stitch.stitch import Source as Layers
    from adaptc.passes.stitch.stitch import Stitch
    from adaptc.sources.base import Source
    from adaptc.spec.schema import Spec

Known = Mapping[str, tuple["Source", "PretrainedConfig"]]


def stitch_faults(spec: Spec, known: Known) -> Iterator[str]:
    """What stands in the way of a spec's `stitch`, a sentence each; nothing for a spec without one.

    Args:
        spec: What would be compiled.
        known: The models that could be read, with their configs.
    """
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
        yield from _faults(each, known)


def _faults(stitch: Stitch, known: Known) -> Iterator[str]:
    from adaptc.passes.stitch.stitch import route_sources

    runs: dict[str, tuple[Layers, ...]] = {"trunk": (stitch.trunk.source,)}
    runs |= {f"routes.{name}": route_sources(route) for name, route in stitch.routes.items()}
    used = dict.fromkeys(layers.model for run in runs.values() for layers in run)
    for name in used:
        if name not in known:
            yield f"no model '{name}'; there are: {', '.join(known)}"
    for where, run in runs.items():
        yield from _ranges(where, run, known)
    first, *others = [name for name in used if name in known] or [""]
    for name in others:
        yield from _vocabulary(first, name, known)
    for name in used:
        if name in known:
            yield from _norm(name, known[name][1])


def _ranges(where: str, run: tuple[Layers, ...], known: Known) -> Iterator[str]:
    for layers in run:
        if layers.model not in known:
            continue
        count, end = known[layers.model][1].num_hidden_layers, layers.layer_range[1]
        if end > count:
            yield (
                f"{where}: layer_range {list(layers.layer_range)} of {layers.model}; it has layers 0 to {count - 1}, "
                f"so END is at most {count}"
            )
    last = run[-1]
    if where != "trunk" and last.model in known and last.layer_range[1] < known[last.model][1].num_hidden_layers:
        count = known[last.model][1].num_hidden_layers
        yield (
            f"{where}: ends at layer {last.layer_range[1]} of {last.model}; a route ends with its model's last layer, "
            f"{count}, as the head reads that"
        )


def _vocabulary(first: str, other: str, known: Known) -> Iterator[str]:
    sizes = {name: known[name][1].vocab_size for name in (first, other)}
    if sizes[first] != sizes[other]:
        there = f"'{other}' has {sizes[other]:,} token ids, '{first}' {sizes[first]:,}"
        yield f"{there}; models with one vocabulary are right"
        return
    try:
        mine, theirs = (tokens_of(known[name][0]) for name in (first, other))
    except LoadError:
        return  # said of the model itself
    unlike = sorted(token for token in mine.keys() | theirs.keys() if mine.get(token) != theirs.get(token))
    if unlike:
        token = unlike[0]
        yield (
            f"{len(unlike):,} tokens have other ids in '{other}' than in '{first}': {token!r} is {theirs.get(token)}, "
            f"not {mine.get(token)}; models with one vocabulary are right"
        )


def _norm(name: str, config: PretrainedConfig) -> Iterator[str]:
    """A stitch reads a state by its RMS, and hands on one that RMS norms will read."""
    if getattr(config, "rms_norm_eps", None) is None:
        yield f"'{name}' has no RMS norm ({config.model_type}); models whose layers read through RMS norms are right"
