"""The interface of a backend: what turns the graphs of a bundle into engines and decoders on one device.

A backend is one folder beside this file. It offers one object of this form, and `loading.BACKENDS` lists it under the
name that bundles carry in `target.backend`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from adaptc.runtime.backends.engine import Engine
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.model.decoder import BatchDecoder
from adaptc.runtime.model.verifier import DraftDecoder

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True, slots=True)
class DecoderOptions:
    """How a bundle's decoder is loaded.

    Attributes:
        batch: Slots of the KV cache, from 1.
        chunk: The largest number of prompt tokens that are read at once, from 1.
        threads: Threads that work on one step, for engines on a CPU; None for the physical cores.
        budget: The budget that most requests will have, 0 to 1, which may decide which of two graphs is loaded first;
            None for the gates' own.
        prefix_bytes: The largest size of the KV entries kept for prompts that begin alike, in bytes; 0 keeps none. For
            decoders in the host's memory.
        routes: The routes of a stitched bundle to load; empty for all. For decoders in the host's memory.
        spare: Slots of each tail of a stitched bundle beyond the batch, for drafts. For decoders in the host's memory.
    """

    batch: int = 1
    chunk: int = 512
    threads: int | None = None
    budget: float | None = None
    prefix_bytes: int = 0
    routes: tuple[str, ...] = ()
    spare: int = 0


class Backend(Protocol):
    """What runs bundles of one `target.backend`."""

    @property
    def device(self) -> Device:
        """The device it runs on."""

    @property
    def takes_images(self) -> bool:
        """Whether its decoders take the features of images."""

    def check(self, bundle: Bundle) -> None:
        """Compare files that were built on this machine, which the manifest does not list, with their hashes.

        Raises:
            BundleError: one is damaged.
        """

    def engine(self, bundle: Bundle, graph: str, threads: int | None = None) -> Engine:
        """Load a graph that continues no sequence, such as an encoder.

        Args:
            bundle: An opened bundle.
            graph: The graph's name.
            threads: Threads that work on one run, for engines on a CPU; None for the physical cores.

        Raises:
            EngineError: the engine is not installed, or refuses the graph.
        """

    def decoder(self, bundle: Bundle, options: DecoderOptions) -> BatchDecoder:
        """Load the decoder of a bundle, routes included.

        Args:
            bundle: An opened bundle whose plan is one decoder.
            options: How it is loaded.

        Raises:
            BundleError: the plan is not one decoder, or the bundle is damaged.
            EngineError: the engine is not installed, or refuses a graph.
            RequestError: a number is out of range, or the KV cache does not fit in memory.
        """

    def draft_decoder(self, bundle: Bundle, options: DecoderOptions) -> DraftDecoder | None:
        """Load the decoder of the graph that drafts tokens; None if the bundle has none, or this backend takes none.

        Args:
            bundle: An opened bundle whose plan is one decoder.
            options: How it is loaded.

        Raises:
            EngineError: as `decoder`.
            RequestError: as `decoder`.
        """
