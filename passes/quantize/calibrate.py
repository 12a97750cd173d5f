"""Quantize a captured decoder on what its layers really see.

One walk through the FX graph, all calibration tokens at once: at each linear layer the inputs' second moments are
taken, the weight is rounded by them, and the walk goes on with the *rounded* weight, so that later layers make good
for what earlier ones lost. This is GPTQ's sequential order at the price of a single forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import fx

from adaptc.errors import PassError
from adaptc.ir.graph import FxGraph, attribute
from adaptc.ir.place import no_images
from adaptc.ir.program import Program
from adaptc.passes.quantize.blockwise import Bits, Blocks, concatenate, curvature_of, dequantize, quantize_blocks, split
from adaptc.runtime.bundle.names import HIDDEN, INPUT_IDS, POSITION_IDS, THRESHOLD

WINDOW = 128
"""Tokens of one calibration sequence. Short ones hold more first tokens, whose huge activations must survive."""

TOKENS = 8192
"""Calibration tokens; twice as many change little (docs/quantization.md)."""

Ids = npt.NDArray[np.int64]
Sample = npt.NDArray[np.int64] | npt.NDArray[np.float32]
"""Token ids, or the states that a graph reads in their place."""

Walked = Callable[[int, int], None]
"""Called with how many linear layers are done, and of how many."""


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


def linear_weights(graph: FxGraph) -> dict[str, tuple[int, int]]:
    """Weights of the graph's linear layers in the order they run, and their shapes (rows, columns)."""
    return {name: tuple(_tensor(graph.module, name).shape) for name in map(_weight, _linears(graph))}  # type: ignore[misc]


def alone(graph: FxGraph) -> set[str]:
    """Weights that read what no other linear layer reads: attention's output, the block's second half, the head."""
    linears = _linears(graph)
    return {_weight(node) for node in linears if len(_together(node, linears)) == 1}


def quantize_linears(
    graph: FxGraph,
    ids: Sample,
    bits: Mapping[str, Bits],
    *,
    block_size: int | Mapping[str, int] = 32,
    symmetric: Collection[str] = (),
    walked: Walked = lambda _done, _all: None,
) -> dict[str, Blocks]:
    """Quantize linear layers, each on the inputs it gets from the layers quantized before it.

    Args:
        graph: A captured decoder; it stays as it is.
        ids: int64 [sequences, tokens], see `calibration_ids`; or float32 [sequences, tokens, width].
        bits: Bits of each weight, by name; weights that are not named stay as they are.
            4-bit weights are rounded by GPTQ; 8 bits are near enough lossless without.
        block_size: Columns that share a scale; for all weights, or by name.
        symmetric: 4-bit weights that do without zero points.
        walked: Told of progress.

    Returns:
        By the weights' names: what MatMulNBits wants, in the weights' own shapes.

    Raises:
        PassError: a name is no linear layer's weight, or activations are not finite.
    """
    linears = _linears(graph)
    unknown = set(bits) - set(map(_weight, linears))
    if unknown:
        raise PassError(f"{min(unknown)}: no linear layer has this weight")
    wanted = [node for node in linears if _weight(node) in bits]
    sizes = block_size if isinstance(block_size, Mapping) else dict.fromkeys(bits, block_size)
    blocks: dict[str, Blocks] = {}
    walk = fx.Interpreter(graph.module)
    walk.env.update(_feeds(graph, ids))
    with torch.no_grad():
        for node in graph.module.graph.nodes:
            if len(blocks) == len(bits):
                break  # what comes after the last weight is not needed, least of all logits
            if node in wanted:
                x = walk.env[node.args[0]]
                if _weight(node) not in blocks:
                    group = [name for name in _together(node, wanted) if sizes[name] == sizes[_weight(node)]]
                    blocks |= _quantize(graph, x, group, bits, sizes[group[0]], symmetric=_weight(node) in symmetric)
                    walked(len(blocks), len(bits))
                bias = walk.env[node.args[2]] if len(node.args) > 2 and node.args[2] is not None else None
                if len(blocks) < len(bits):
                    weight = torch.from_numpy(dequantize(blocks[_weight(node)]))
                    walk.env[node] = F.linear(x.float(), weight, bias).to(x.dtype)
            elif node.op not in ("placeholder", "output"):
                walk.env[node] = walk.run_node(node)
            for dead in walk.user_to_last_uses.get(node, []):
                walk.env.pop(dead, None)
    return blocks


def _quantize(
    graph: FxGraph,
    x: torch.Tensor,
    group: list[str],
    bits: Mapping[str, Bits],
    block_size: int,
    *,
    symmetric: bool,
) -> dict[str, Blocks]:
    """Quantize weights that read one input x [..., columns]."""
    weights = {name: _tensor(graph.module, name).detach().float().numpy() for name in group}
    done = {name: quantize_blocks(w, 8, block_size) for name, w in weights.items() if bits[name] == 8}
    four = [name for name in group if bits[name] == 4]
    if four:
        curve, threads = curvature_of(_hessian(x), block_size), torch.get_num_threads()
        with _one_thread(), ThreadPoolExecutor(threads) as pool:
            rows = np.concatenate([weights[name] for name in four])
            parts = np.array_split(rows, min(threads, len(rows)))
            rounded = pool.map(
                lambda part: quantize_blocks(part, 4, block_size, symmetric=symmetric, hessian=curve), parts
            )
            whole = concatenate(list(rounded))
        done |= zip(four, split(whole, [len(weights[name]) for name in four]), strict=True)
    return done


def _hessian(x: torch.Tensor) -> npt.NDArray[np.float32]:
    """Mean of x xᵀ, every token brought to the same length.

    A decoder's first token, and some others, carry activations a thousand times larger. Unweighted they would be all
    that a Hessian knows; left out, rounding destroys what attention rests on.
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    rows = rows * rows.square().mean(1, keepdim=True).add_(1e-12).rsqrt_()
    # NumPy sees that this is symmetric and does half the work.
    scaled = rows.numpy()
    hessian: npt.NDArray[np.float32] = scaled.T @ scaled
    hessian /= len(scaled)
    return hessian


def _linears(graph: FxGraph) -> list[fx.Node]:
    """Linear layers whose weight is the graph's own."""
    linear = torch.ops.aten.linear.default
    nodes = [node for node in graph.module.graph.nodes if node.target is linear]
    return [node for node in nodes if isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr"]


def _together(node: fx.Node, wanted: list[fx.Node]) -> list[str]:
    """Weights that read what this node reads: their Hessian is one."""
    return list(dict.fromkeys(_weight(each) for each in wanted if each.args[0] is node.args[0]))


def _weight(node: fx.Node) -> str:
    source = node.args[1]
    assert isinstance(source, fx.Node)
    return str(source.target)


def _tensor(module: Any, name: str) -> torch.Tensor:
    found = attribute(module, name)
    assert isinstance(found, torch.Tensor)
    return found


def _feeds(graph: FxGraph, ids: Sample) -> dict[fx.Node, torch.Tensor]:
    sequences, tokens = ids.shape[:2]
    values = {
        INPUT_IDS if ids.ndim == 2 else HIDDEN: torch.from_numpy(ids),
        POSITION_IDS: torch.arange(tokens).expand(sequences, tokens),
        THRESHOLD: torch.full((sequences, tokens), float("-inf")),  # of gates: every block runs
        **no_images(),
    }
    placeholders = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
    missing = {str(node.target) for node in placeholders} - set(values)
    if missing:
        raise PassError(f"a graph with input {min(missing)}: only decoders of token ids can be calibrated on text")
    return {node: values[str(node.target)] for node in placeholders}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Rounding is thousands of small steps: its rows are shared out, and torch's threads would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
