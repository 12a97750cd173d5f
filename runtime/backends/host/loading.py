"""From a bundle to a decoder in the host's memory, for any engine that runs graphs on arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from adaptc.runtime.backends.backend import DecoderOptions
from adaptc.runtime.backends.engine import Engine
from adaptc.runtime.backends.host.adapted import AdaptedEngine
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.backends.host.dense_twin import Form, TwinEngine
from adaptc.runtime.backends.host.prefix_cache import PrefixCache
from adaptc.runtime.backends.host.routed import HostRoutedDecoder
from adaptc.runtime.backends.host.verifying import VerifyingDecoder
from adaptc.runtime.backends.host.verifying_routed import VerifyingRoutedDecoder
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.manifest import DecoderSpec, VerificationGraph
from adaptc.runtime.bundle.plan import Switch
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.errors import BundleError
from adaptc.runtime.model.budget import batched_dense
from adaptc.runtime.model.decoder import state_width
from adaptc.runtime.model.plan import decoder_graph
from adaptc.runtime.model.router import router_of

Load = Callable[[str], Engine]
"""Loads a graph by its name."""


def host_decoder(bundle: Bundle, load: Load, options: DecoderOptions) -> HostDecoder | HostRoutedDecoder[Any]:
    """The decoder of a bundle, routes included.

    Args:
        bundle: An opened bundle.
        load: Loads one of its graphs.
        options: How the decoder is loaded.

    Raises:
        BundleError: the plan is not one decoder.
        EngineError: as `load`.
        RequestError: a number is out of range, or the KV cache does not fit in memory.
    """
    name, spec = decoder_graph(bundle)
    engine = _with_adapters(bundle, name, load, options)
    prefixes = PrefixCache(options.prefix_bytes)
    trunk = _decoder(bundle, name, spec, engine, load, options, prefixes)
    switch = bundle.manifest.switch
    return trunk if switch is None else _routed(bundle, switch, trunk, load, options, prefixes)


def _with_adapters(bundle: Bundle, name: str, load: Load, options: DecoderOptions) -> Engine:
    """A graph's engine; with adapters one that also runs its form with them, loaded when it is first needed."""
    gates, adapted = bundle.manifest.gates.get(name), bundle.manifest.adapters.get(name)
    plain = _with_twin(bundle, name, "" if gates is None else gates.dense, gates, load, options)
    if adapted is None:
        return plain
    return AdaptedEngine(plain, lambda: _with_twin(bundle, adapted.graph, adapted.dense, gates, load, options))


def _with_twin(
    bundle: Bundle, name: str, dense: str, gates: SkipGates | None, load: Load, options: DecoderOptions
) -> Engine:
    """A graph's engine; with a dense twin both, of which only what requests are likely to use is loaded now."""
    if gates is None or not dense:
        return load(name)
    graphs: dict[Form, str] = {"gated": name, "dense": dense}
    skips = (gates.budget if options.budget is None else options.budget) < 1
    likely: dict[Form, bool] = {"gated": skips, "dense": not skips or batched_dense(gates, options.batch)}
    graph = bundle.manifest.graphs[name]
    preload = tuple(form for form in graphs if likely[form])
    return TwinEngine(graph.inputs, graph.outputs, lambda form: load(graphs[form]), preload)


def draft_decoder(bundle: Bundle, load: Load, options: DecoderOptions) -> HostDecoder | None:
    """The decoder of the graph that drafts tokens; None if a bundle has none.

    Raises:
        EngineError: as `load`.
        RequestError: as `host_decoder`.
    """
    name = bundle.manifest.draft
    spec = bundle.manifest.graphs[name].decoder if name else None
    if spec is None:
        return None
    gates = bundle.manifest.gates.get(name)
    return HostDecoder(load(name), spec, options.batch, options.chunk, gates, name=name)


def _decoder(
    bundle: Bundle,
    name: str,
    spec: DecoderSpec,
    engine: Engine,
    load: Load,
    options: DecoderOptions,
    prefixes: PrefixCache,
) -> HostDecoder:
    """The decoder of one graph; with graphs that verify drafted tokens one that does so."""
    gates, there = bundle.manifest.gates.get(name), bundle.manifest.verification
    own: Form = "dense" if gates is None else "gated"
    twin = () if gates is None else there.get(gates.dense, ())
    graphs: dict[Form, tuple[VerificationGraph, ...]] = {"dense": twin, own: there.get(name, ())}
    sizes = options.batch, options.chunk
    adapted = bundle.manifest.adapters.get(name)
    names = () if adapted is None else adapted.names
    if not any(graphs.values()):
        return HostDecoder(engine, spec, *sizes, gates, prefixes=prefixes, name=name, adapters=names)
    return VerifyingDecoder(
        engine, spec, *sizes, gates, prefixes=prefixes, name=name, adapters=names, graphs=graphs, load=load
    )


def _routed(
    bundle: Bundle,
    switch: Switch,
    trunk: HostDecoder,
    load: Load,
    options: DecoderOptions,
    prefixes: PrefixCache,
) -> HostRoutedDecoder[Any]:
    """A trunk with the tails of its routes, or of those that are asked for."""
    tails: dict[str, HostDecoder] = {}
    for route in options.routes or switch.routes:
        graph = switch.routes[route]
        spec = bundle.manifest.graphs[graph].decoder
        if spec is None:
            raise BundleError(f"{bundle.path}: route {route!r}: its graph is no decoder; compile again")
        more = replace(options, batch=options.batch + options.spare)
        gates = bundle.manifest.gates.get(graph)
        engine = _with_twin(bundle, graph, "" if gates is None else gates.dense, gates, load, options)
        tails[route] = _decoder(bundle, graph, spec, engine, load, more, prefixes)
    [name] = bundle.manifest.plan[0].graphs
    width = state_width(bundle.manifest.graphs[name].outputs)
    assert width is not None, "the trunk of a stitched bundle gives states"
    # A router picks among all routes; where some are not there, requests name theirs.
    router = router_of(bundle, switch) if tails.keys() == switch.routes.keys() else None
    verifying = {route: tail for route, tail in tails.items() if isinstance(tail, VerifyingDecoder)}
    if isinstance(trunk, VerifyingDecoder) and len(verifying) == len(tails):
        return VerifyingRoutedDecoder(trunk, verifying, width, router)
    return HostRoutedDecoder(trunk, tails, width, router)
