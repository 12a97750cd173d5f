"""What the host tells a GPU before a step and reads after it: a few hundred bytes at addresses that never change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.kernels.step_kernels import PARTS, RING
from adaptc.runtime.backends.cuda.kv_cache import LAYER
from adaptc.runtime.backends.cuda.step import StateLink
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.names import CACHE_POSITIONS, HIDDEN, INPUT_IDS, POSITIONS, THRESHOLD
from adaptc.runtime.model.budget import DENSE
from adaptc.runtime.model.decoder import Ids
from adaptc.runtime.text.sampling import Sampler

CHOICE = np.dtype([("temperature", np.float32), ("top_k", np.int32), ("top_p", np.float32), ("min_p", np.float32)])
"""`Choice` of the kernels."""


@dataclass(frozen=True, slots=True)
class KeptStates:
    """A prompt that the trunk of a stitched model has read: its states in one row.

    Attributes:
        row: Row of the trunk.
        tokens: How many.
    """

    row: int
    tokens: int

    def __len__(self) -> int:
        return self.tokens


Prompt = Ids | KeptStates
"""Token ids, or what the trunk made of them."""


class StepControl:
    """The state of a session's steps.

    Attributes:
        state: Address of `State` for steps.
        one: Address of `State` for prompts, which are one row.
        ids: Address of each row's token.
        levels: Address of each row's threshold.
        thresholds: Address of what the gates of a step are compared with.
        whole: Address of thresholds under which every block runs, for prompts.
        link: Where this part of a stitched model meets the others; None for a whole model.
        points: float32[ring, rows]: where each token is drawn; the GPU reads it there.
        told: int32[ring, rows]: the tokens that were chosen; the GPU writes it there.
        ran: uint8[ring, gates]: which blocks ran.
    """

    def __init__(
        self,
        cuda: Cuda,
        spec: DecoderSpec,
        batch: int,
        chunk: int,
        gates: int,
        cache_positions: int,
        link: StateLink | None = None,
    ) -> None:
        self._cuda, self._batch, self._gates, self.link = cuda, batch, gates, link
        # One block, so that one copy sets it: state, ids, positions, levels, choices, rows.
        parts: list[tuple[str, Any, int]] = [("state", np.int32, 4), ("ids", np.int32, batch)]
        parts += [("positions", np.int32, batch), ("levels", np.float32, batch), ("choices", CHOICE, batch)]
        parts.append(("rows", np.int32, batch))
        self._block = np.zeros(1, np.dtype([(name, kind, (count,)) for name, kind, count in parts]))
        self._address = cuda.alloc(self._block.nbytes)
        places = {name: self._address + int(field[1]) for name, field in (self._block.dtype.fields or {}).items()}
        self.state, self.levels, self.ids = places["state"], places["levels"], places["ids"]
        self._choices, self._rows = places["choices"], places["rows"]
        self.thresholds = cuda.alloc(4 * batch)
        self._given = {INPUT_IDS: places["ids"], POSITIONS: places["positions"], CACHE_POSITIONS: cache_positions}
        self._given[THRESHOLD] = self.thresholds
        if link is not None and link.ids:
            self._given[HIDDEN] = cuda.alloc(4 * batch * link.width)
        self.one = cuda.alloc(16)
        cuda.put(self.one, np.array([1, 0, 0, 0], np.int32))
        self.whole = cuda.alloc(4 * chunk)
        cuda.put(self.whole, np.full(chunk, DENSE, np.float32))
        self._prompt = cuda.alloc(4 * chunk), cuda.alloc(4 * chunk)
        self._tables = cuda.alloc(len(spec.kv) * LAYER.itemsize), cuda.alloc(len(spec.kv) * LAYER.itemsize)
        self._parts = cuda.alloc(4 * batch * PARTS), cuda.alloc(4 * batch * PARTS)
        self._points, self.points = cuda.pinned((RING, batch), np.float32)
        self._told, self.told = cuda.pinned((RING, batch), np.int32)
        self._ran, self.ran = cuda.pinned((RING, max(1, gates)), np.uint8)
        self.ran = self.ran[:, :gates] if gates else self.ran[:, :0]
        self._masks: dict[tuple[bool, ...], int] = {}

    def given(self) -> dict[str, int]:
        """Addresses of a step's inputs."""
        return dict(self._given)

    def set(
        self,
        tokens: Sequence[int],
        before: Ids,
        levels: npt.NDArray[np.float32],
        samplers: Sequence[Sampler],
        warmup: int,
        off: bool,
        ring_index: int,
        order: Sequence[int] = (),
    ) -> None:
        """Set the state from which the next step goes on.

        Args:
            tokens: Each row's newest.
            before: The position before that token's.
            levels: Each row's threshold.
            samplers: How tokens are chosen; () for the most likely.
            warmup: Positions at which every block runs.
            off: Whether several rows run every block.
            ring_index: Place in the ring of the step before.
            order: In a tail, which row of the trunk each row is.
        """
        rows, block = len(tokens), self._block[0]
        block["state"] = (rows, warmup, int(off), ring_index)
        block["ids"][:rows], block["positions"][:rows], block["levels"][:rows] = tokens, before, levels
        block["choices"][:] = np.array((0, 0, 1, 0), CHOICE)
        block["rows"] = np.arange(self._batch)
        block["rows"][: len(order)] = order
        for row, sampler in enumerate(samplers):
            how = sampler.sampling
            block["choices"][row] = (0.0 if sampler.greedy else how.temperature, how.top_k, how.top_p, how.min_p)
        self._cuda.put(self._address, self._block)

    def prompt(self, prompt: Prompt, part: range) -> dict[str, int]:
        """Put part of a prompt there; addresses of a graph's inputs."""
        self._cuda.put(self._prompt[1], np.arange(part.start, part.stop, dtype=np.int32))
        own = {POSITIONS: self._prompt[1], THRESHOLD: self.whole}
        if isinstance(prompt, KeptStates):
            assert self.link is not None
            own[HIDDEN] = self.link.at(prompt.row, part.start)
        else:
            self._cuda.put(self._prompt[0], np.asarray(prompt[part.start : part.stop], np.int32))
            own[INPUT_IDS] = self._prompt[0]
        return {**self._given, **own}

    def table(self, layers: npt.NDArray[Any], stream: Any) -> tuple[int, int]:
        """Put the table for a prompt's row there; its address and length."""
        self._cuda.put_async(self._tables[0], layers, stream)
        return self._tables[0], len(layers)

    def step_table(self, layers: npt.NDArray[Any]) -> tuple[int, int]:
        """Put the table for steps there; rows from the first, so it only changes when the cache grows."""
        self._cuda.put(self._tables[1], layers)
        return self._tables[1], len(layers)

    def mask(self, mask: tuple[bool, ...]) -> int:
        """The address of a byte for each gate."""
        if mask not in self._masks:
            self._masks[mask] = self._cuda.alloc(len(mask))
            self._cuda.put(self._masks[mask], np.array(mask or (True,), np.uint8))
        return self._masks[mask]

    def addresses(self, ran: int) -> dict[str, int]:
        """What `choose` reads and writes, and rows of the ring."""
        return {
            "values": self._parts[0],
            "places": self._parts[1],
            "choices": self._choices,
            "points": self._points,
            "ids": self.link.ids if self.link is not None and self.link.ids else self.ids,
            "told": self._told,
            "ran": ran,
            "ran_told": self._ran,
            "rows": self._rows,
            "stride": self._batch,
        }
