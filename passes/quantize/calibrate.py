"""Quantize a captured model on what its layers really see.

One walk through the FX graph, all calibration tokens at once: at each linear layer the inputs' second moments are
taken, the weight is rounded by them, and the walk goes on with the *rounded* weight, so that later layers make good
for what earlier ones lost. This is GPTQ's sequential order at the price of a single forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import fx

from adaptc.errors import PassError
from adaptc.ir.blocks import Bits, Blocks
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.operators.place import no_images
from adaptc.ir.program import Program
from adaptc.passes.quantize.blockwise import concatenate, curvature_of, dequantized, quantize_blocks, split
from adaptc.passes.quantize.kept_codes import Form, block_of_skip, code_keys, read_codes, write_codes
from adaptc.passes.quantize.linears import bias_of, linears_of, readers_of_same, tensor_of, weight_name
from adaptc.passes.store import Store
from adaptc.runtime.bundle.names import ATTENTION_MASK, HIDDEN, INPUT_IDS, POSITION_IDS, THRESHOLD, TOKEN_TYPE_IDS
from adaptc.runtime.progress import SILENT, Progress

WINDOW = 128
"""Tokens of one calibration sequence. Short ones hold more first tokens, whose huge activations must survive."""

TOKENS = 8192
"""Calibration tokens; twice as many change little (docs/quantization.md)."""

PART = 2048
"""Rows that a thread rounds at once: fewer leave it waiting for Python, more do not fit its cache."""

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
    """Quantize linear layers, each on the inputs it gets from the layers quantized before it.

    Args:
        graph: A captured decoder or encoder; it stays as it is.
        ids: int64 [sequences, tokens], see `calibration_ids`; or float32 [sequences, tokens, width].
        bits: Bits of each weight, by name; weights that are not named stay as they are.
            4-bit weights are rounded by GPTQ; 8 bits are near enough lossless without.
        block_size: Columns that share a scale; for all weights, or by name.
        symmetric: 4-bit weights that do without zero points.
        store: Has the codes of earlier runs, and gets those of this one.
        progress: Told of the weights that are done.
        device: Where torch runs the layers and rounds: one layer's weights are there at a time.

    Returns:
        By the weights' names: what MatMulNBits wants, in the weights' own shapes.

    Raises:
        PassError: a name is no linear layer's weight, or activations are not finite.
    """
    names = {weight_name(node) for node in linears_of(graph)}
    if unknown := set(bits) - names:
        raise PassError(f"{min(unknown)}: no linear layer has this weight")
    sizes = block_size if isinstance(block_size, Mapping) else dict.fromkeys(bits, block_size)
    forms = {name: Form(bits[name], sizes[name], name in symmetric) for name in bits}
    feeds = _feeds(graph, ids)
    keys = {} if store is None else code_keys(graph, feeds, forms)
    blocks = {} if store is None else read_codes(store, keys)
    progress.step(len(blocks), len(bits))
    with torch.no_grad():
        for chosen in _walk(graph, feeds, forms, blocks, device):
            blocks |= chosen
            if store is not None:
                for name, each in chosen.items():
                    write_codes(store, keys[name], each)
            progress.step(len(blocks), len(bits))
    return blocks


def _walk(
    graph: FxGraph,
    feeds: Mapping[fx.Node, torch.Tensor],
    forms: Mapping[str, Form],
    known: Mapping[str, Blocks],
    device: str,
) -> Iterator[dict[str, Blocks]]:
    """Run the graph as far as it takes to choose the codes that are not known; yields those of each input."""
    wanted = [node for node in linears_of(graph) if weight_name(node) in forms]
    blocks, missing = dict(known), set(forms) - set(known)
    needed = _needed([node for node in wanted if weight_name(node) in missing], set(wanted))
    walk = fx.Interpreter(graph.module)
    walk.env.update({node: value.to(device) for node, value in feeds.items()})
    rounded = set(wanted)
    for node in graph.module.graph.nodes:
        if not missing:
            break  # what comes after the last weight is not needed, least of all logits
        if node in rounded and (name := weight_name(node)) in missing:
            group = [n for n in readers_of_same(node, wanted) if n in missing and _same_size(forms, n, name)]
            yield (chosen := _quantize(graph, walk.env[node.args[0]], group, forms))
            blocks |= chosen
            missing -= set(group)
        if node in needed and node.op != "placeholder":
            walk.env[node] = _rounded(walk, node, blocks) if node in rounded else _run(walk, node, device)
        for dead in walk.user_to_last_uses.get(node, []):
            walk.env.pop(dead, None)


def _needed(linears: list[fx.Node], rounded: Collection[fx.Node]) -> set[fx.Node]:
    """The nodes whose values it takes to know what these layers read."""
    needed: set[fx.Node] = set()
    waiting = [node.args[0] for node in linears]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, fx.Node) or node in needed:
            continue
        needed.add(node)
        if node in rounded:
            waiting += [node.args[0], bias_of(node)]  # its weight is known by its codes
        elif (block := block_of_skip(node)) is not None:
            waiting.append(block)
        else:
            waiting += node.all_input_nodes
    return needed


def _rounded(walk: fx.Interpreter, linear: fx.Node, blocks: Mapping[str, Blocks]) -> torch.Tensor:
    """What a linear layer gives with its rounded weight."""
    x, bias = walk.env[linear.args[0]], bias_of(linear)  # type: ignore[index]
    weight = dequantized(blocks[weight_name(linear)], x.device)
    return F.linear(x.float(), weight, None if bias is None else walk.env[bias]).to(x.dtype)


def _run(walk: fx.Interpreter, node: fx.Node, device: str) -> Any:
    """What any other node gives; of a skip gate it is its block's result, as every block runs."""
    block = block_of_skip(node)
    if block is not None:
        return walk.env[block]
    value = walk.run_node(node)
    return value.to(device) if node.op == "get_attr" else value


def _same_size(forms: Mapping[str, Form], one: str, other: str) -> bool:
    return forms[one].block_size == forms[other].block_size


def _quantize(graph: FxGraph, x: torch.Tensor, group: list[str], forms: Mapping[str, Form]) -> dict[str, Blocks]:
    """Quantize weights that read one input x [..., columns] and have blocks of one size."""
    block_size, symmetric = forms[group[0]].block_size, forms[group[0]].symmetric
    weights = {name: tensor_of(graph.module, name).detach().float().cpu().numpy() for name in group}
    done = {name: quantize_blocks(w, 8, block_size) for name, w in weights.items() if forms[name].bits == 8}
    four = [name for name in group if forms[name].bits == 4]
    if four:
        curve = curvature_of(_hessian(x), block_size)
        rows = np.concatenate([weights[name] for name in four])
        rounded = partial(quantize_blocks, bits=4, block_size=block_size, symmetric=symmetric, hessian=curve)
        whole = rounded(rows) if x.is_cuda else _in_parts(rows, rounded)
        done |= zip(four, split(whole, [len(weights[name]) for name in four]), strict=True)
    return done


def _in_parts(rows: Floats, round_part: Callable[[Floats], Blocks]) -> Blocks:
    """Round a matrix's rows in parts, each in a thread; torch's own rest, as they share out single small operators."""
    threads = torch.get_num_threads()
    parts = np.array_split(rows, max(min(threads, len(rows)), -(-len(rows) // PART)))
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return concatenate(list(pool.map(round_part, parts)))
    finally:
        torch.set_num_threads(threads)


def _hessian(x: torch.Tensor) -> torch.Tensor:
    """Mean of x xᵀ, every token brought to the same length.

    A decoder's first token, and some others, carry activations a thousand times larger. Unweighted they would be all
    that a Hessian knows; left out, rounding destroys what attention rests on.
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    rows = rows * rows.square().mean(1, keepdim=True).add_(1e-12).rsqrt_()
    if rows.is_cuda:
        return (rows.T @ rows).div_(len(rows))
    # NumPy sees that this is symmetric and does half the work.
    scaled = rows.numpy()
    return torch.from_numpy(scaled.T @ scaled).div_(len(scaled))


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
