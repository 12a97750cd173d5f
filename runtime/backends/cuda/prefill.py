"""Reading a prompt into a row of the GPU's cache, a piece at a time."""

from __future__ import annotations

from collections.abc import Callable

from adaptc.runtime.backends.cuda.graph import GpuGraph
from adaptc.runtime.backends.cuda.step_control import Prompt
from adaptc.runtime.model.decoder import Logits


class GpuPrefill:
    """A `Prefill` over a `GpuGraph`.

    Attributes:
        slot: The row; whoever moves the sequence writes here where to.
        cached: 0: entries of earlier prompts are not kept on the GPU.
    """

    def __init__(
        self,
        graph: GpuGraph,
        row: int,
        prompt: Prompt,
        threshold: float,
        drain: Callable[[], None],
        gives_logits: bool = True,
    ) -> None:
        """Begin with nothing read.

        Args:
            graph: Reads it.
            row: Its old sequence is lost.
            prompt: Ids, or states that a trunk keeps.
            threshold: What the gates are compared with for later tokens.
            drain: Waits for the steps in flight and forgets the one that nobody asked for.
            gives_logits: Whether the graph has a head.
        """
        self.slot, self.cached = row, 0
        self._graph, self._prompt, self._drain, self._gives_logits = graph, prompt, drain, gives_logits
        drain()
        graph.open(row, threshold)

    @property
    def done(self) -> int:
        """See `Prefill`."""
        return int(self._graph.length[self.slot])

    @property
    def complete(self) -> bool:
        """See `Prefill`."""
        return self.done >= len(self._prompt)

    def read(self, most: int) -> Logits | None:
        """See `Prefill`."""
        self._drain()
        place = self._graph.read(self.slot, self._prompt, most)
        return self._graph.first(place) if self._gives_logits and self.complete else None
