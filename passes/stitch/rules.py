"""The rules of a stitch, written once: `check` asks them of configs, the pass of captured graphs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from adaptc.errors import PassError
from adaptc.passes.stitch.options import LayerRange, Route

TRUNK = "trunk"
"""Name of the graph that every route begins with, and of its option in YAML."""


@dataclass(frozen=True, slots=True)
class DecoderFacts:
    """What the rules of a stitch ask of a decoder.

    Attributes:
        layers: Number of decoder layers.
        vocab_size: Number of token ids; None if it is not known.
        vocabulary: Hash of the tokens and their ids; "" if it is not known.
        rms_norm: Whether layers read the state through an RMS norm, as a stitch does.
        tokens: Ids by token, to name one that differs; empty if they are not known.
    """

    layers: int
    vocab_size: int | None = None
    vocabulary: str = ""
    rms_norm: bool = True
    tokens: Mapping[str, int] = field(default_factory=dict)


def check_ranges(trunk: LayerRange, routes: Mapping[str, Route]) -> None:
    """Refuse ranges and orders that cannot run, whatever the models.

    Raises:
        PassError: no routes, a range that is empty or does not begin where it must, or a layer that would run twice
            or after one that follows it.
    """
    if not routes:
        raise PassError("routes: none; at least one path after the trunk is right")
    _check_range(TRUNK, trunk)
    if trunk.first != 0:
        raise PassError(f"trunk: layer_range {list(trunk.layer_range)}; the trunk begins at layer 0")
    for name, route in routes.items():
        where = f"routes.{name}"
        if not name.isidentifier():
            raise PassError(f"{where}: no name; letters, digits and _ are right")
        if not route.slices:
            raise PassError(f"{where}: slices: none; the layers that follow the trunk are right")
        for layers in route.layers:
            _check_range(where, layers)
        _check_order(where, (trunk, *route.layers))


def _check_range(where: str, layers: LayerRange) -> None:
    if layers.first < 0 or layers.count <= 0:
        raise PassError(
            f"{where}: layer_range {list(layers.layer_range)} of {layers.model} is empty; "
            "[FIRST, END] with END above FIRST is right"
        )


def _check_order(where: str, runs: Sequence[LayerRange]) -> None:
    """Each layer runs once, and never after one that follows it in its own model."""
    import networkx as nx

    blocks = [(run.model, layer) for run in runs for layer in range(*run.layer_range)]
    twice = [block for index, block in enumerate(blocks) if block in blocks[:index]]
    if twice:
        model, layer = twice[0]
        raise PassError(f"{where}: layer {layer} of {model} runs twice; ranges that do not overlap are right")
    graph = nx.DiGraph()
    nx.add_path(graph, blocks)
    for model in dict.fromkeys(run.model for run in runs):
        own = sorted(layer for name, layer in blocks if name == model)
        nx.add_path(graph, [(model, layer) for layer in own])
    if not nx.is_directed_acyclic_graph(graph):
        cycle = nx.find_cycle(graph)
        (model, later), (_, earlier) = next((a, b) for a, b, *_ in cycle if a[0] != b[0] or b[1] < a[1])[:2]
        raise PassError(
            f"{where}: a cycle: layer {later} of {model} runs before layer {earlier} of {cycle[0][0][0]}, which it "
            "follows in its own model; rising layers are right"
        )


def used_models(trunk: LayerRange, routes: Mapping[str, Route]) -> tuple[str, ...]:
    """Names of the models that a stitch takes layers from, the trunk's first."""
    return tuple(dict.fromkeys(run.model for run in (trunk, *(r for each in routes.values() for r in each.layers))))


def stitch_faults(
    trunk: LayerRange, routes: Mapping[str, Route], facts: Mapping[str, DecoderFacts], models: Iterable[str]
) -> Iterator[str]:
    """Return what keeps decoders from being stitched so, a sentence each.

    Args:
        trunk: Layers that every route begins with; `check_ranges` has passed.
        routes: What follows, by name.
        facts: What is known of the models that layers come from, by name.
        models: Names of all models that layers could come from.
    """
    models = tuple(models)
    runs = {TRUNK: (trunk,)} | {f"routes.{name}": route.layers for name, route in routes.items()}
    for where, run in runs.items():
        for model in dict.fromkeys(layers.model for layers in run):
            if model not in models:
                yield f"{where}: no model '{model}'; there are: {', '.join(models)}"
    known = [name for name in used_models(trunk, routes) if name in facts]
    for other in known[1:]:
        yield from _vocabulary_faults(known[0], other, facts)
    for where, run in runs.items():
        yield from _range_faults(where, run, facts)
    for name, route in routes.items():
        if route.stitch is not None and all(follows(a, b) for a, b in pairwise((trunk, *route.layers))):
            yield f"routes.{name}: stitch: it goes on where the trunk ends; leave the stitch out"
    for name in known:
        if not facts[name].rms_norm:
            yield f"'{name}' has no RMS norm; models whose layers read through RMS norms are right"


def follows(before: LayerRange, after: LayerRange) -> bool:
    """Whether a run of layers goes on where the one before it ends, so that no stitch is needed."""
    return (after.model, after.first) == (before.model, before.end)


def _range_faults(where: str, run: Sequence[LayerRange], facts: Mapping[str, DecoderFacts]) -> Iterator[str]:
    for layers in run:
        if layers.model in facts and layers.end > (count := facts[layers.model].layers):
            yield (
                f"{where}: layer_range {list(layers.layer_range)} of {layers.model}; it has layers 0 to {count - 1}, "
                f"so END is at most {count}"
            )
    last = run[-1]
    if where != TRUNK and last.model in facts and last.end < (count := facts[last.model].layers):
        yield (
            f"{where}: ends at layer {last.end} of {last.model}; a route ends with its model's last layer, "
            f"{count}, as the head reads that"
        )


def _vocabulary_faults(first: str, other: str, facts: Mapping[str, DecoderFacts]) -> Iterator[str]:
    """A route's head must predict what the trunk's embedding reads."""
    a, b = facts[first], facts[other]
    if a.vocab_size is not None and b.vocab_size is not None and a.vocab_size != b.vocab_size:
        yield (
            f"'{other}' has {b.vocab_size:,} token ids, '{first}' {a.vocab_size:,}; models with one vocabulary are "
            "right"
        )
    elif a.vocabulary and b.vocabulary and a.vocabulary != b.vocabulary:
        unlike = sorted(
            token for token in a.tokens.keys() | b.tokens.keys() if a.tokens.get(token) != b.tokens.get(token)
        )
        if a.tokens and b.tokens and unlike:
            token = unlike[0]
            yield (
                f"{len(unlike):,} tokens have other ids in '{other}' than in '{first}': {token!r} is "
                f"{b.tokens.get(token)}, not {a.tokens.get(token)}; models with one vocabulary are right"
            )
        else:
            yield f"'{other}' and '{first}' call other tokens by one id; models with one vocabulary are right"
