"""The interface of a decoder: what writing and scoring need, whatever the device and the engine.

A decoder holds a KV cache with `batch` slots, one for each sequence that is being decoded. Prompts are read one by one
and piece by piece; each step adds one token to every sequence whose prompt was read. Those occupy the first slots, so a
step needs only their number; prompts may be read in any slot behind them. `backends/` implements the interface: `host/`
over any engine that runs graphs on arrays, `cuda/` on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from adaptc.runtime.bundle.manifest import DecoderSpec, TensorSpec
from adaptc.runtime.bundle.names import HIDDEN, INPUT_IDS, cache_tensor
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.budget import Skips
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.model.router import Choice
from adaptc.runtime.text.sampling import Sampler

Ids: TypeAlias = npt.NDArray[np.int64]
"""Token ids, int64 [tokens]."""

Logits: TypeAlias = npt.NDArray[np.float32]
"""Unnormalised log-probabilities, float32 [..., vocab]."""

States: TypeAlias = npt.NDArray[np.float32]
"""Hidden states between a trunk and its tails, float32 [..., width]."""

TILE = 128
"""Rows that a kernel of ONNX Runtime multiplies in one piece: of 129, the last one is multiplied alone."""


class Prefill(Protocol):
    """A prompt that is being read into a slot."""

    slot: int
    """Where it lies; whoever moves the sequence writes here where to."""

    @property
    def done(self) -> int:
        """Tokens that the slot holds."""

    @property
    def cached(self) -> int:
        """How many of them were not read, since they were known from an earlier prompt."""

    @property
    def complete(self) -> bool:
        """Whether the prompt was read."""

    def read(self, most: int) -> Logits | None:
        """Read a piece of the prompt.

        Args:
            most: The largest number of tokens, from 2; an engine that reads prompts whole takes no notice.

        Returns:
            float32 [vocab]: logits of the token that follows the prompt, the caller's to keep; None while something is
            left to read, and if more than the prompt was known.

        Raises:
            EngineError: the engine failed.
        """


class BatchDecoder(Protocol):
    """A decoder of a batch of sequences."""

    @property
    def spec(self) -> DecoderSpec:
        """Vocabulary, special tokens, and how many tokens a slot holds."""

    @property
    def batch(self) -> int:
        """The number of slots."""

    @property
    def gates(self) -> SkipGates | None:
        """The skip gates of the graph that reads token ids; None if it has none."""

    @property
    def routes(self) -> tuple[str, ...]:
        """Names of the routes, the default first; empty for a model without routes."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that sequences choose among; empty for a model that keeps none."""

    @property
    def takes_budget(self) -> bool:
        """Whether a budget changes anything: there are skip gates, or a router."""

    def admit(self, slot: int, ids: Ids, options: RequestOptions, prompt: int | None = None) -> Prefill:
        """Begin to read a prompt into a slot, whose old sequence is lost.

        Args:
            slot: From 0 to `batch` - 1, none of those whose sequences take part in steps.
            ids: int64 [tokens], 1 to `max_tokens`: the prompt, and for a sequence that goes on what was written after
                it, which is taken from the cache if it is known, and not read.
            options: How the sequence runs.
            prompt: The number of tokens of the prompt; None for all.

        Raises:
            EngineError: an encoder failed.
        """

    def retire(self, slot: int, ids: Ids, options: RequestOptions, prompt: int) -> None:
        """Take a sequence out of a slot; what is known of it may serve others.

        Args:
            slot: Of the sequence; it may be in the middle of its prompt.
            ids: int64 [tokens], the prompt and all that was written.
            options: As the sequence ran.
            prompt: The number of tokens of the prompt.
        """

    def start(self, slot: int, ids: Ids, options: RequestOptions) -> Logits:
        """Read a prompt into a slot in one go, whose old sequence is lost.

        Args:
            slot: From 0 to `batch` - 1.
            ids: int64 [tokens], 1 to `max_tokens`.
            options: How the sequence runs.

        Returns:
            float32 [vocab]: logits of the token that follows.

        Raises:
            EngineError: the engine failed.
        """

    def decode(self, tokens: Sequence[int]) -> Logits:
        """Add one token to the sequence in each of the first slots, none of which may be full.

        Returns:
            float32 [sequences, vocab]: logits of the tokens that follow; valid until the next call.

        Raises:
            EngineError: the engine failed.
        """

    def move(self, slot: int, to: int) -> None:
        """Move a sequence to another slot, whose old sequence is lost."""

    def route(self, slot: int) -> str | None:
        """The route of the sequence in a slot; None for a model without routes."""

    def reroute(self, slot: int, route: str) -> None:
        """Continue the sequence in a slot by another route, from its next token on.

        Raises:
            RequestError: the model has no routes.
        """

    def set_budget(self, slot: int, options: RequestOptions) -> None:
        """Have the later tokens of the sequence in a slot run with another budget; its route stays.

        Args:
            slot: Of the sequence.
            options: Those of the sequence, with that budget.
        """

    def ran(self, slot: int) -> bytes | None:
        """Which gated blocks the newest `decode` ran: a byte for each; None during the sequence's warm-up."""

    def skips(self, steps: Sequence[bytes], route: str | None) -> Skips | None:
        """The results of `ran` for some steps of one sequence, collected; None without gates."""

    def dense(self, options: RequestOptions) -> bool:
        """Whether every block runs under these options."""

    def score(self, ids: Ids, most: int, options: RequestOptions, slot: int = 0) -> Iterator[Logits]:
        """Read a text and yield the logits at every position.

        Args:
            ids: int64 [tokens], 1 to `max_tokens`.
            most: The largest number of positions that are yielded at once.
            options: Options under which every block runs.
            slot: Where it is read; its old sequence is lost.

        Yields:
            float32 [positions, vocab]
        """

    def explain(self, ids: Ids, budget: float | None, slot: int = 0) -> Choice:
        """The route that the router picks for a prompt, and why; the prompt is read in a slot, whose sequence is lost.

        Raises:
            RequestError: there are no routes, or there is no router.
        """

    def close(self) -> None:
        """Free engines and caches."""


@runtime_checkable
class TokenChooser(Protocol):
    """A decoder that chooses tokens on the device that computes them, so that logits stay there."""

    def choose(self, tokens: Sequence[int], samplers: Sequence[Sampler]) -> list[int]:
        """Add one token to each of the first slots, and choose the token that follows in each.

        Args:
            tokens: One for each sequence.
            samplers: One for each sequence; each must be `free`.
        """


def next_tokens(decoder: BatchDecoder, tokens: Sequence[int], samplers: Sequence[Sampler]) -> list[int]:
    """Add one token to each of the first slots, and choose the token that follows in each.

    Args:
        decoder: Holds the sequences; none of their slots may be full.
        tokens: One for each sequence.
        samplers: One for each sequence.

    Raises:
        EngineError: the engine failed, or computed no finite numbers.
    """
    if isinstance(decoder, TokenChooser) and all(sampler.free for sampler in samplers):
        return decoder.choose(tokens, samplers)
    return [sampler(logits) for sampler, logits in zip(samplers, decoder.decode(tokens), strict=True)]


def piece_size(left: int, most: int) -> int:
    """How many tokens of a prompt are read next, so that none is read alone unless `most` is 1.

    A single token runs other kernels than several, which round otherwise. So a prompt that is read in any pieces gives
    the same numbers, bit by bit on a CPU. Kernels take tiles of tokens; one behind the last whole tile is alone too.

    Args:
        left: Tokens that are left.
        most: The largest number; one more is read where two are left of three.
    """
    size = min(left, most)
    if size > 1 and left - size == 1:
        size = size - 1 if size > 2 else size + 1
    return size - 2 if size % TILE == 1 and size > 1 else size  # two less leave two more, or more, for the next piece


def read_whole(prefill: Prefill, most: int) -> Logits:
    """Read a whole prompt of a new sequence; logits of the token that follows, float32 [vocab].

    Raises:
        EngineError: the engine failed.
    """
    logits = read_through(prefill, most)
    assert logits is not None, "something of a new prompt is always read"
    return logits


def read_through(prefill: Prefill, most: int) -> Logits | None:
    """Read what is left of a prompt, in pieces of at most `most` tokens; what the last `read` gives."""
    logits = None
    while not prefill.complete:
        logits = prefill.read(most)
    return logits


def state_width(tensors: Sequence[TensorSpec]) -> int | None:
    """The width of the hidden states among a graph's inputs or outputs; None if there are none."""
    width = next((tensor.shape[-1] for tensor in tensors if tensor.name == HIDDEN), None)
    return width if isinstance(width, int) else None


def feed_of(inputs: Sequence[TensorSpec], batch: int) -> tuple[str, Ids | States]:
    """The input that a step's tokens or states go to, and its array, zeros: [batch, 1], or [batch, 1, width]."""
    width = state_width(inputs)
    if width is None:
        return INPUT_IDS, np.zeros((batch, 1), np.int64)
    return HIDDEN, np.zeros((batch, 1, width), np.float32)


def cache_dtype(tensors: Sequence[TensorSpec]) -> str:
    """The type of a graph's KV cache, as numpy spells it, from its inputs; "float32" if it has none."""
    return next((tensor.dtype for tensor in tensors if cache_tensor(tensor.name) is not None), "float32")
