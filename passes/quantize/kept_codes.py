"""Codes that were chosen before: found again by a hash of everything that decides them.

GPTQ chooses a matrix's codes by the matrix and by what the layer reads. What it reads follows from the calibration
tokens, and from the operators and weights before it, those of rounded layers being their codes. So the key of a matrix
is a hash over that part of the graph: a rewrite that leaves it as it is leaves its codes as they are. Calibration runs
every block, so a skip gate is no part of what later layers read.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from torch import fx

from adaptc.ir import graph as graph_module
from adaptc.ir.blocks import Bits, Blocks
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.operators import skip  # noqa: F401  (declares adaptc::skip)
from adaptc.ir.unread.tensors import UnreadTensor
from adaptc.passes.quantize.linears import bias_of, linears_of, mixtures_of, tensor_of, weight_name
from adaptc.passes.store import Store, code_of, piece_key, versions_of

if TYPE_CHECKING:
    from typing_extensions import Self

KIND = "gptq"
"""What the store calls codes."""

UNWRITTEN = 4
"""Inputs whose codes may wait for the disk."""

SKIP = torch.ops.adaptc.skip.default


@dataclass(frozen=True, slots=True)
class Form:
    """How a matrix is stored.

    Attributes:
        bits: Bits of a code.
        block_size: Columns that share a scale.
        symmetric: Whether zero points are left out.
    """

    bits: Bits
    block_size: int
    symmetric: bool


def block_of_skip(node: fx.Node) -> fx.Node | None:
    """What a skip gate gives when its block runs, the block's own result; None for any other node."""
    return node.args[2] if node.target is SKIP else None  # type: ignore[return-value]


def code_keys(graph: FxGraph, feeds: Mapping[fx.Node, torch.Tensor], forms: Mapping[str, Form]) -> dict[str, str]:
    """The key of each matrix's codes.

    Args:
        graph: A captured decoder.
        feeds: What it is calibrated on, by input.
        forms: How each matrix is stored, by its weight's name; other weights stay as they are.
    """
    rounded = {node: weight_name(node) for node in linears_of(graph) if weight_name(node) in forms}
    mixtures = {node: names for node, names in mixtures_of(graph).items() if set(names) <= set(forms)}
    values: dict[fx.Node, str] = {}
    tensors: dict[str, str] = {}
    keys: dict[str, str] = {}
    for node in graph.module.graph.nodes:
        if node.op == "placeholder":
            values[node] = _content(feeds[node])
        elif node.op == "get_attr":
            name = str(node.target)
            values[node] = tensors[name] = tensors.get(name) or _content(tensor_of(graph.module, name))
        elif node in rounded:
            name, read = rounded[node], values[node.args[0]]
            if name not in keys:
                keys[name] = piece_key(_code(), read, tensors[name], asdict(forms[name]))
            values[node] = piece_key("rounded", read, keys[name], _named(bias_of(node), values))
        elif node in mixtures:
            held = [_named(node.args, values), [asdict(forms[name]) for name in mixtures[node]]]
            keys |= {name: piece_key(_code(), held, place) for place, name in enumerate(mixtures[node])}
            values[node] = piece_key("rounded", held)
        elif (block := block_of_skip(node)) is not None:
            values[node] = values[block]
        elif node.op != "output":
            values[node] = piece_key(str(node.target), _named(node.args, values), _named(node.kwargs, values))
    return keys


def read_codes(store: Store, keys: Mapping[str, str]) -> Iterator[tuple[str, Blocks]]:
    """The codes that a store has, each with its weight's name."""
    for name, key in keys.items():
        if (content := store.read(KIND, key)) is not None:
            yield name, _blocks(content)


def write_codes(store: Store, key: str, blocks: Blocks) -> None:
    """Keep one matrix's codes."""
    tensors: dict[str, npt.NDArray[Any]] = {"packed": blocks.packed, "scales": blocks.scales}
    if blocks.zero_points is not None:
        tensors["zeros"] = blocks.zero_points
    form = np.array([blocks.columns, blocks.bits, blocks.block_size], np.int64)
    store.write(KIND, key, safetensors.numpy.save(tensors | {"form": form}))


class CodesWriter:
    """Writes codes to a store in a thread, as a disk is waited for; with no store it does nothing."""

    def __init__(self, store: Store | None, keys: Mapping[str, str]) -> None:
        self._store, self._keys = store, keys
        self._thread, self._waiting = ThreadPoolExecutor(1), deque[Future[None]]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        while self._waiting:
            self._waiting.popleft().result()

    def add(self, chosen: Mapping[str, Blocks]) -> None:
        """Write codes, by weight; waits if those of several inputs are not written yet."""
        if self._store is None:
            return
        while len(self._waiting) >= UNWRITTEN:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._write, self._store, chosen))

    def _write(self, store: Store, chosen: Mapping[str, Blocks]) -> None:
        for name, each in chosen.items():
            write_codes(store, self._keys[name], each)


def _blocks(content: bytes) -> Blocks:
    tensors = safetensors.numpy.load(content)
    columns, bits, block_size = map(int, tensors["form"])
    return Blocks(
        tensors["packed"], tensors["scales"], tensors.get("zeros"), columns, 8 if bits == 8 else 4, block_size
    )


@cache
def _code() -> str:
    """Another one wherever codes may come out differently: this room, the graph's operators, libraries."""
    rooms = (Path(__file__).parent, Path(graph_module.__file__).parent)
    return piece_key(code_of(file for room in rooms for file in room.glob("*.py")), versions_of("torch", "numpy"))


def _content(tensor: torch.Tensor) -> str:
    """A hash of a tensor's type, shape and values; of one that is not read yet, of what it is known by."""
    if isinstance(tensor, UnreadTensor) and tensor.identity:
        return piece_key(tensor.identity)
    values = tensor.detach().contiguous()
    digest = hashlib.sha256(f"{values.dtype} {tuple(values.shape)}\0".encode())
    digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _named(value: Any, values: Mapping[fx.Node, str]) -> Any:
    """An argument with each node replaced by its hash, as JSON can hold it."""
    if isinstance(value, fx.Node):
        return values[value]
    if isinstance(value, (list, tuple)):
        return [_named(each, values) for each in value]
    if isinstance(value, Mapping):
        return {key: _named(each, values) for key, each in value.items()}
    return repr(value)
