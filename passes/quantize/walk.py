"""A walk through a graph over calibration inputs: some sequences in each thread, node by node.

An operator that torch's own threads share out ends when the slowest of them does, and most operators of a layer do
little. So each thread has sequences of its own, and runs what is elementwise as well as the products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import Tensor, fx

from adaptc.ir.blocks import Blocks
from adaptc.ir.unread.tensors import UnreadTensor
from adaptc.passes.quantize.blockwise import dequantized, split
from adaptc.passes.quantize.kept_codes import block_of_skip
from adaptc.passes.quantize.linears import bias_of

if TYPE_CHECKING:
    from typing_extensions import Self

SPAN = 256
"""Columns of the second moments that a thread sums at once."""

LEAST = 2
"""Sequences of a thread, at least: sizes of 1 are a case of their own to torch."""

Given = TypeVar("Given")
Result = TypeVar("Result")


class CalibrationWalk:
    """Values of a graph's nodes over calibration inputs.

    While one is open, torch's own threads rest.
    """

    def __init__(
        self, module: fx.GraphModule, feeds: Mapping[fx.Node, Tensor], whole: Iterable[fx.Node], device: str
    ) -> None:
        """Make one.

        Args:
            module: The graph's; it stays as it is.
            feeds: Inputs, [sequences, …].
            whole: Inputs that are no sequences: every thread gets all of them.
            device: Where operators run; on a GPU in one thread.
        """
        apart = [node for node in feeds if node not in set(whole)]
        sequences = min((len(feeds[node]) for node in apart), default=1)
        self._before = torch.get_num_threads()
        parts = max(1, min(self._before, sequences // LEAST)) if device == "cpu" else 1
        self._device = device
        self._walks = [fx.Interpreter(module) for _ in range(parts)]
        for node, value in feeds.items():
            shares = torch.tensor_split(value, parts) if node in apart else [value] * parts
            for walk, share in zip(self._walks, shares, strict=True):
                walk.env[node] = share.to(device)
        self._pool = ThreadPoolExecutor(self._before) if device == "cpu" else None

    def __enter__(self) -> Self:
        if self._pool is not None:
            torch.set_num_threads(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.set_num_threads(self._before)
        if self._pool is not None:
            self._pool.shutdown()

    @property
    def threads(self) -> int:
        """How many values `each` works on at once."""
        return 1 if self._pool is None else self._before

    @contextmanager
    def torch_threads(self) -> Iterator[None]:
        """Let torch's own threads work, for a single large operator."""
        now = torch.get_num_threads()
        torch.set_num_threads(self._before)
        try:
            yield
        finally:
            torch.set_num_threads(now)

    def each(self, work: Callable[[Given], Result], given: Iterable[Given]) -> list[Result]:
        """Do a piece of work for each of several values, in threads; results are in the values' order."""
        if self._pool is None:
            return [work(each) for each in given]
        return list(self._pool.map(work, given))

    def values(self, node: fx.Node) -> list[Tensor]:
        """What a node gave, [sequences, …], in parts."""
        return [walk.env[node] for walk in self._walks]

    def run(self, node: fx.Node) -> None:
        """Run a node whose arguments have run; of a skip gate it is its block's result, as every block runs."""
        if (block := block_of_skip(node)) is not None:
            self.run_as(node, lambda walk: walk.env[block])
        elif node.op == "get_attr":
            value = self._walks[0].run_node(node)
            self._set(node, value if self._device == "cpu" else value.to(self._device))
        else:
            # What is not read yet is read once for all parts.
            read = {each: self._walks[0].env[each] for each in node.all_input_nodes}
            read = {each: value for each, value in read.items() if isinstance(value, UnreadTensor)}
            for each, value in read.items():
                self._set(each, value.read())
            self.run_as(node, lambda walk: walk.run_node(node))
            for each, value in read.items():
                self._set(each, value)

    def run_rounded(self, linear: fx.Node, blocks: Blocks) -> None:
        """Run a linear layer with its rounded weight."""
        source, bias = linear.args[0], bias_of(linear)
        assert isinstance(source, fx.Node)
        if self._pool is None:
            weight = dequantized(blocks, self._device)
        else:
            weight = torch.cat(self.each(dequantized, _row_parts(blocks, self._before)))

        def product(walk: fx.Interpreter) -> Tensor:
            x = walk.env[source]
            return F.linear(x.float(), weight, None if bias is None else walk.env[bias]).to(x.dtype)

        self.run_as(linear, product)

    def run_as(self, node: fx.Node, work: Callable[[fx.Interpreter], Any]) -> None:
        """Run a node in another way than its own, given the values of a thread's nodes (`env`)."""
        if len(self._walks) == 1:
            with self.torch_threads():
                results = [work(self._walks[0])]
        else:
            results = self.each(_without_gradients(work), self._walks)
        for walk, result in zip(self._walks, results, strict=True):
            walk.env[node] = result

    def drop(self, node: fx.Node) -> None:
        """Forget the values that no node after this one reads."""
        for walk in self._walks:
            for dead in walk.user_to_last_uses.get(node, []):
                walk.env.pop(dead, None)

    def second_moments(self, node: fx.Node) -> Tensor:
        """Mean of x xᵀ over a node's values x [..., columns], every token brought to the same length.

        A decoder's first token, and some others, carry activations a thousand times larger. Unweighted they would be
        all that the moments know; left out, rounding destroys what attention rests on.

        Returns:
            float32 [columns, columns].
        """
        rows = self.each(scaled_rows, self.values(node))
        count, columns = sum(map(len, rows)), rows[0].shape[1]
        if self._pool is None:
            whole: Tensor = (rows[0].T @ rows[0]).div_(count)
            return whole
        moments = torch.empty(columns, columns)

        def fill(first: int) -> None:
            # Symmetric: what is right of the diagonal is copied.
            last = min(first + SPAN, columns)
            part = moments[first:last, :last]
            torch.mm(rows[0][:, first:last].T, rows[0][:, :last], out=part)
            for more in rows[1:]:
                part.addmm_(more[:, first:last].T, more[:, :last])
            moments[:first, first:last] = part.div_(count)[:, :first].T

        self.each(fill, reversed(range(0, columns, SPAN)))  # the longest first
        return moments

    def _set(self, node: fx.Node, value: Any) -> None:
        for walk in self._walks:
            walk.env[node] = value


def _without_gradients(work: Callable[[Given], Result]) -> Callable[[Given], Result]:
    """The same work in a thread of its own, where torch would record it for a backward pass."""

    def done(given: Given) -> Result:
        with torch.no_grad():
            return work(given)

    return done


def scaled_rows(x: Tensor) -> Tensor:
    """Vectors of one length: float32 [tokens, columns]."""
    rows = x.reshape(-1, x.shape[-1]).float()
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True).square_().div_(rows.shape[1])
    scaled: Tensor = rows * lengths.add_(1e-12).rsqrt_()
    return scaled


def _row_parts(blocks: Blocks, count: int) -> Sequence[Blocks]:
    """A matrix's rows in so many parts of about one size."""
    count = min(count, blocks.rows)
    return split(blocks, [blocks.rows // count + (part < blocks.rows % count) for part in range(count)])
