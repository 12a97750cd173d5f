"""Quantize a captured model on what its layers really see.

One walk through the FX graph, all calibration tokens at once: at each linear layer the inputs' second moments are
taken, the weight is rounded by them, and the walk goes on with the *rounded* weight, so that later layers make good
for what earlier ones lost. This is GPTQ's sequential order at the price of a single forward pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from adaptc.errors import PassError
from adaptc.ir.blocks import Bits, Blocks
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.operators.place import no_images
from adaptc.ir.program import Program
from adaptc.passes.quantize.blockwise import concatenate, curvature_of, quantize_blocks, split
from adaptc.passes.quantize.expert_codes import quantize_mixture, run_mixture
from adaptc.passes.quantize.kept_codes import CodesWriter, Form, block_of_skip, code_keys, read_codes
from adaptc.passes.quantize.linears import (
    LINEAR,
    bias_of,
    linears_of,
    mixtures_of,
    readers_of_same,
    tensor_of,
    weight_name,
)
from adaptc.passes.quantize.walk import CalibrationWalk
from adaptc.passes.spool import Spool
from adaptc.passes.store import Store
from adaptc.runtime.bundle.names import ATTENTION_MASK, HIDDEN, INPUT_IDS, POSITION_IDS, THRESHOLD, TOKEN_TYPE_IDS
from adaptc.runtime.progress import SILENT, Progress

WINDOW = 128
"""Tokens of one calibration sequence. Short ones hold more first tokens, whose huge activations must survive."""

TOKENS = 8192
"""Calibration tokens; twice as many change little (docs/quantization.md)."""

ALONE = 1 << 22
"""Weights of the smallest matrix that several threads round: with fewer, they wait for Python longer than they work."""

PART = 4096
"""Rows that a thread rounds at once, at most: more do not fit its cache."""

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Sample = npt.NDArray[np.int64] | npt.NDArray[np.float32]
"""Token ids, or the states that a graph reads in their place."""


def calibration_ids(ids: Ids, tokens: int = TOKENS, window: int = WINDOW) -> Ids:
    """Cut a text's tokens into sequences: int64 [sequences, window].

    Args:
        ids: int64 [tokens of the text].
        tokens: How many are used at most.
        window: Tokens of a sequence; a text shorter than this is one short sequence.

    Raises:
        PassError: the text has fewer than two tokens.
    """
    if len(ids) < 2:
        raise PassError(f"a calibration text of {len(ids)} tokens; some thousands are right")
    window = min(window, len(ids))
    count = max(1, min(tokens, len(ids)) // window)
    return ids[: count * window].reshape(count, window)


def sample_of(program: Program, name: str) -> Sample | None:
    """What a graph is calibrated on: its text, or the states that the plan's first graph makes of its own.

    Returns:
        As `calibration_ids`, or float32 [sequences, window, width]; None without text.
    """
    if name in program.samples:
        return calibration_ids(program.samples[name])
    first = program.plan[0].graphs[0]
    if first not in program.samples or HIDDEN not in program.graph(name, FxGraph).inputs:
        return None
    ids = calibration_ids(program.samples[first])
    graph = program.graph(first, FxGraph)
    with torch.no_grad():
        [states] = graph.module(*_feeds(graph, ids).values())
    found: Sample = states.float().numpy()
    return found


def quantize_linears(
    graph: FxGraph,
    ids: Sample,
    bits: Mapping[str, Bits],
    *,
    block_size: int | Mapping[str, int] = 32,
    symmetric: Collection[str] = (),
    store: Store | None = None,
    progress: Progress = SILENT,
    device: str = "cpu",
) -> dict[str, Blocks]:
    """Quantize linear layers and experts, each on the inputs it gets from the layers quantized before it.

    Args:
        graph: A captured decoder or encoder; it stays as it is.
        ids: int64 [sequences, tokens], see `calibration_ids`; or float32 [sequences, tokens, width].
        bits: Bits of each weight, by name; weights that are not named stay as they are. Both weights of a block's
            experts are named, or none.
            4-bit weights are rounded by GPTQ; 8 bits are near enough lossless without.
        block_size: Columns that share a scale; for all weights, or by name.
        symmetric: 4-bit weights that do without zero points.
        store: Has the codes of earlier runs, and gets those of this one.
        progress: Told of the weights that are done.
        device: Where torch runs the layers and rounds: one layer's weights are there at a time.

    Returns:
        By the weights' names: what MatMulNBits wants, in the weights' own shapes, experts one below the other.

    Raises:
        PassError: a name is no linear layer's weight and none of experts, or activations are not finite.
    """
    names = {weight_name(node) for node in linears_of(graph)}.union(*mixtures_of(graph).values())
    if unknown := set(bits) - names:
        raise PassError(f"{min(unknown)}: no linear layer has this weight")
    sizes = block_size if isinstance(block_size, Mapping) else dict.fromkeys(bits, block_size)
    forms = {name: Form(bits[name], sizes[name], name in symmetric) for name in bits}
    feeds = _feeds(graph, ids)
    keys = {} if store is None else code_keys(graph, feeds, forms)
    spool = None if store is None else Spool(store.scratch)
    blocks = {} if store is None else {name: _spooled(spool, name, each) for name, each in read_codes(store, keys)}
    progress.step(len(blocks), len(bits))
    whole = [node for node in feeds if node.target in no_images()]
    with (
        torch.no_grad(),
        CalibrationWalk(graph.module, feeds, whole, device) as walk,
        CodesWriter(store, keys) as writer,
    ):
        for chosen in _walk(walk, graph, forms, blocks):
            blocks |= {name: _spooled(spool, name, each) for name, each in chosen.items()}
            writer.add(chosen)
            progress.step(len(blocks), len(bits))
    return blocks


def _spooled(spool: Spool | None, name: str, blocks: Blocks) -> Blocks:
    """Codes that are in a file, where there is one."""
    if spool is None:
        return blocks
    zeros = blocks.zero_points
    return replace(
        blocks,
        packed=spool.array(blocks.packed, name),
        scales=spool.array(blocks.scales, name),
        zero_points=None if zeros is None else spool.array(zeros, name),
    )


def _walk(
    walk: CalibrationWalk, graph: FxGraph, forms: Mapping[str, Form], known: Mapping[str, Blocks]
) -> Iterator[dict[str, Blocks]]:
    """Run the graph as far as it takes to choose the codes that are not known; yields those of each input.

    Args:
        walk: Nothing has run yet.
        graph: Its graph.
        forms: How each weight is stored.
        known: Codes by weight; whoever gets codes puts them here before the next are asked for.
    """
    wanted = [node for node in linears_of(graph) if weight_name(node) in forms]
    missing = set(forms) - set(known)
    mixtures = {node: names for node, names in mixtures_of(graph).items() if set(names) <= set(forms)}
    open_ = [node for node in wanted if weight_name(node) in missing]
    open_ += [node for node, names in mixtures.items() if missing & set(names)]
    needed = _needed(open_, {*wanted, *mixtures})
    rounded = set(wanted)
    for node in graph.module.graph.nodes:
        if not missing:
            break  # what comes after the last weight is not needed, least of all logits
        if node in rounded and (name := weight_name(node)) in missing:
            group = [n for n in readers_of_same(node, wanted) if n in missing and _same_size(forms, n, name)]
            yield _quantize(walk, graph, node.args[0], group, forms)
            missing -= set(group)
        elif node in mixtures and missing & set(mixtures[node]):
            yield quantize_mixture(walk, graph, node, mixtures[node], forms)
            missing -= set(mixtures[node])
        if node in needed and node.op != "placeholder":
            if node in mixtures:
                run_mixture(walk, node, *(known[name] for name in mixtures[node]))
            elif node in rounded:
                walk.run_rounded(node, known[weight_name(node)])
            else:
                walk.run(node)
        walk.drop(node)


def _needed(layers: list[fx.Node], rounded: Collection[fx.Node]) -> set[fx.Node]:
    """The nodes whose values it takes to know what these layers read."""
    needed: set[fx.Node] = set()
    waiting = [each for node in layers for each in _read_by(node)]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, fx.Node) or node in needed:
            continue
        needed.add(node)
        if node in rounded:
            waiting += [*_read_by(node), bias_of(node)]  # its weight is known by its codes
        elif (block := block_of_skip(node)) is not None:
            waiting.append(block)
        else:
            waiting += node.all_input_nodes
    return needed


def _read_by(layer: fx.Node) -> Sequence[Any]:
    """What a linear layer, or a block's experts, read besides weights."""
    return layer.args[:1] if layer.target is LINEAR else layer.args[:3]


def _same_size(forms: Mapping[str, Form], one: str, other: str) -> bool:
    return forms[one].block_size == forms[other].block_size


def _quantize(
    walk: CalibrationWalk, graph: FxGraph, read: fx.Node, group: Sequence[str], forms: Mapping[str, Form]
) -> dict[str, Blocks]:
    """Quantize weights that read one node's values [..., columns] and have blocks of one size."""
    block_size, symmetric = forms[group[0]].block_size, forms[group[0]].symmetric
    weights = dict(zip(group, walk.each(partial(_weight, graph), group), strict=True))
    done = {name: quantize_blocks(w, 8, block_size) for name, w in weights.items() if forms[name].bits == 8}
    four = [name for name in group if forms[name].bits == 4]
    if four:
        moments = walk.second_moments(read)
        with walk.torch_threads():
            curve = curvature_of(moments, block_size)
        rows = np.concatenate([weights[name] for name in four]) if len(four) > 1 else weights[four[0]]
        lengths = [len(weights[name]) for name in four]
        rounded = partial(quantize_blocks, bits=4, block_size=block_size, symmetric=symmetric, hessian=curve)
        whole = rounded(rows) if moments.is_cuda else concatenate(walk.each(rounded, _parts(rows, walk.threads)))
        done |= zip(four, split(whole, lengths), strict=True)
    return done


def _parts(rows: Floats, threads: int) -> list[Floats]:
    """A matrix's rows in the parts that threads round."""
    least = 1 if rows.size < ALONE else min(threads, len(rows))
    return np.array_split(rows, max(least, -(-len(rows) // PART)))


def _weight(graph: FxGraph, name: str) -> Floats:
    weight: Floats = tensor_of(graph.module, name).detach().float().cpu().numpy()
    return weight


def _feeds(graph: FxGraph, ids: Sample) -> dict[fx.Node, torch.Tensor]:
    sequences, tokens = ids.shape[:2]
    values = {
        INPUT_IDS if ids.ndim == 2 else HIDDEN: torch.from_numpy(ids),
        POSITION_IDS: torch.arange(tokens).expand(sequences, tokens),
        THRESHOLD: torch.full((sequences, tokens), float("-inf")),  # of gates: every block runs
        ATTENTION_MASK: torch.ones(sequences, tokens, dtype=torch.int64),  # an encoder's: no padding
        TOKEN_TYPE_IDS: torch.zeros(sequences, tokens, dtype=torch.int64),
        **no_images(),
    }
    placeholders = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
    missing = {str(node.target) for node in placeholders} - set(values)
    if missing:
        raise PassError(f"a graph with input {min(missing)}: only graphs of token ids can be calibrated on text")
    return {node: values[str(node.target)] for node in placeholders}
