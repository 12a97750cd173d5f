"""How large keys and values become on calibration text: what a cache of 8-bit codes takes its scales from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from adaptc.compiler.tuning import running
from adaptc.errors import PassError
from adaptc.ir.decoder_spec import decoder_spec
from adaptc.ir.onnx_graph import OnnxGraph, fixed
from adaptc.ir.program import CacheRanges, Program
from adaptc.passes.adapters.switch_adapters import adapted
from adaptc.passes.decoder.quantize_cache import attentions
from adaptc.passes.skip_ffn.skips import run_always, skips
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.bundle.names import CACHE_KINDS, HIDDEN, IMAGE_PLACES, KEY
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.decoder import Ids, States
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.progress import SILENT, Progress, counted

TOKENS = 4096
"""Tokens of the calibration text that are read."""

WINDOW = 512
"""Tokens of a sequence. Longer ones than those that are read here are served too: a range is that of all positions."""

_TABLE = 7
"""The place of the table of cosines, [positions, pairs], among the attention kernel's inputs."""

NO_GATES = SkipGates("", (), 0, 0, "any", ())


def with_cache_ranges(program: Program, ids: Mapping[str, Ids], progress: Progress = SILENT) -> Program:
    """Measure what the caches of a program's graphs hold.

    Args:
        program: ONNX level, after all passes of the target that change what a graph computes.
        ids: By the name of a graph or a model, int64 [tokens] of the calibration text.
        progress: Told of each sequence.

    Returns:
        The program with `cache_ranges`; the same one if no graph has a cache.

    Raises:
        PassError: there is no text for a graph, or a graph takes images, of which text says nothing.
    """
    cached = {name: graph for name, graph in program.at_level(OnnxGraph).items() if attentions(graph)}
    if not cached:
        return program
    found: dict[str, CacheRanges] = {}
    with ExitStack() as stack:
        decoders = {name: _opened(stack, program, name, graph) for name, graph in cached.items()}
        tails = {name for name, graph in cached.items() if _reads(graph, HIDDEN)}
        for name in cached.keys() - tails:
            text = ids.get(program.model(name), ids.get(name))
            if text is None or not len(text):
                raise PassError(f"target.kv_cache: int8; no calibration text for '{name}'; fp16 is right")
            reading = [name, *(tails if name == program.plan[0].graphs[0] else ())]
            spec = decoders[name].spec
            windows = list(_windows(text, min(WINDOW, spec.max_tokens)))
            for window in counted(windows, progress):
                for adapter in decoders[name].adapters:  # what they add to keys and values is kept as well
                    decoders[name].start(0, window, RequestOptions(adapter=adapter))
                    found[name] = _wider(found.get(name), _ranges(cached[name], decoders[name], len(window)))
                states: Ids | States = window
                for reader in reading:
                    given = window if reader == name else states
                    states_of = _read(decoders[reader], given, keeps=len(reading) > 1 and reader == name)
                    states = states if states_of is None else states_of
                    found[reader] = _wider(found.get(reader), _ranges(cached[reader], decoders[reader], len(window)))
    return replace(program, cache_ranges=found)


def _opened(stack: ExitStack, program: Program, name: str, graph: OnnxGraph) -> HostDecoder:
    if _reads(graph, IMAGE_PLACES):
        raise PassError(f"target.kv_cache: int8; '{name}' takes images, and calibration text has none; fp16 is right")
    spec = decoder_spec(graph, program.backbone(name))
    assert spec is not None, "a graph with attention over a cache is a decoder"
    dense, kept = run_always(graph, range(len(skips(graph.model.graph)))), program.kept_adapters
    products = program.adapted_products.get(name, ())
    adapters = kept[program.model(name)] if products else ()
    dense = adapted(dense, products, adapters) if products else dense
    names = tuple(each.name for each in adapters)
    [decoder] = stack.enter_context(running({name: dense}, spec, NO_GATES, adapters=names))
    return decoder


def _reads(graph: OnnxGraph, name: str) -> bool:
    return any(value.name == name for value in graph.model.graph.inputs)


def _windows(text: Ids, size: int) -> Iterator[Ids]:
    """Sequences of a text, the last of which may be shorter."""
    for start in range(0, min(len(text), TOKENS), size):
        yield text[start : start + size]


def _read(decoder: HostDecoder, given: Ids | States, *, keeps: bool) -> States | None:
    """Have a decoder read a sequence into its first slot; a trunk's states, if they are kept."""
    if not keeps:
        decoder.prefill(0, given)
        return None
    return np.concatenate([rows.copy() for rows in decoder.score(given, len(given))])


def _ranges(graph: OnnxGraph, decoder: HostDecoder, tokens: int) -> CacheRanges:
    """The largest magnitudes in the first slot: by layer, keys and values, float32 [heads, width]."""
    found = []
    for layer, node in enumerate(attentions(graph)):
        of_kind = []
        for kind in CACHE_KINDS:
            entries = decoder.kv.arrays[layer, kind][0, :, :tokens]
            if kind == KEY:
                neighbours = bool(node.attributes.get_int("rotary_interleaved", 0))
                entries = _turned(entries, _pairs(node, entries.shape[-1]), neighbours=neighbours)
            of_kind.append(np.abs(entries).max(axis=1))
        found.append((of_kind[0], of_kind[1]))
    return tuple(found)


def _pairs(node: ir.Node, width: int) -> int:
    """How many pairs of a head's channels are turned; of one that is turned before the kernel, or not at all, all."""
    table = node.inputs[_TABLE] if len(node.inputs) > _TABLE else None
    return width // 2 if table is None else fixed(table)[1]


def _turned(keys: npt.NDArray[np.float32], pairs: int, *, neighbours: bool) -> npt.NDArray[np.float32]:
    """The length of each pair of channels that a rotary embedding turns, in the place of both.

    At another position the pair is turned by another angle, and either channel may be as large as the pair is long.

    Args:
        keys: float32 [heads, tokens, width].
        pairs: How many pairs there are; what is left of a head is not turned.
        neighbours: Whether channels 2i and 2i + 1 are a pair; otherwise i and i + `pairs` are.
    """
    turned, rest = keys[..., : 2 * pairs], keys[..., 2 * pairs :]
    if neighbours:
        length = np.repeat(np.hypot(turned[..., ::2], turned[..., 1::2]), 2, axis=-1)
    else:
        one = np.hypot(turned[..., :pairs], turned[..., pairs:])
        length = np.concatenate([one, one], axis=-1)
    return np.concatenate([length, rest], axis=-1)


def _wider(known: CacheRanges | None, seen: CacheRanges) -> CacheRanges:
    """The larger of two ranges, channel by channel."""
    if known is None:
        return seen
    return tuple(
        (np.maximum(key, other), np.maximum(value, other_value))
        for (key, value), (other, other_value) in zip(known, seen, strict=True)
    )
