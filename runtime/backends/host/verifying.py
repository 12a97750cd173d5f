"""A decoder that verifies drafted tokens with other graphs over its cache; see `passes/decoder/verify_drafts.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from adaptc.runtime.backends.engine import Engine
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.backends.host.dense_twin import Form
from adaptc.runtime.backends.host.prefix_cache import PrefixCache
from adaptc.runtime.backends.host.verification import HostVerification
from adaptc.runtime.bundle.manifest import DecoderSpec, VerificationGraph
from adaptc.runtime.bundle.names import ADAPTER
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.budget import DENSE, batched_dense
from adaptc.runtime.model.decoder import Ids, Logits, States
from adaptc.runtime.model.options import RequestOptions
from adaptc.runtime.model.verifier import Verified


class VerifyingDecoder(HostDecoder):
    """A `HostDecoder` that is a `Verifier`."""

    def __init__(
        self,
        engine: Engine,
        spec: DecoderSpec,
        batch: int,
        chunk: int,
        gates: SkipGates | None,
        *,
        prefixes: PrefixCache,
        name: str,
        adapters: tuple[str, ...] = (),
        graphs: Mapping[Form, Sequence[VerificationGraph]],
        load: Callable[[str], Engine],
    ) -> None:
        """Allocate the cache; see `HostDecoder`.

        Args:
            engine: See there, as all that follow.
            spec: See there.
            batch: See there.
            chunk: See there.
            gates: See there.
            prefixes: See there.
            name: See there.
            adapters: See there.
            graphs: What verifies, see `HostVerification`.
            load: Loads one of these graphs.

        Raises:
            RequestError: as `HostDecoder`.
            EngineError: as `HostDecoder`.
        """
        super().__init__(engine, spec, batch, chunk, gates, prefixes=prefixes, name=name, adapters=adapters)
        extra = {name: feed for name, feed in self._extra.step(1).items() if name != ADAPTER}
        self._verification = HostVerification(graphs, load, self.kv, extra)

    def close(self) -> None:
        """See `BatchDecoder.close`."""
        self._verification.close()
        super().close()

    @property
    def capacity(self) -> int:
        """See `Verifier.capacity`."""
        return self.spec.max_tokens

    def verifiable(self, options: RequestOptions) -> int:
        """See `Verifier.verifiable`; gates must decide for each row by itself, and none verifies adapters."""
        if options.adapter is not None:
            return 0
        skips = self.gates is not None and not self.dense(options)
        apart = self.gates is not None and self.gates.batch == "rows" and "gated" in self._verification.graphs
        return 0 if skips and not apart else self._verification.most

    def apart(self, options: RequestOptions, sequences: int) -> bool:
        """See `Verifier.apart`; gates may decide for all rows together, and run every block of many."""
        gates = self.gates
        if gates is None or sequences == 1 or self.dense(options):
            return True
        return gates.batch == "rows" and not batched_dense(gates, sequences)

    def verify(self, slot: int, tokens: Sequence[int]) -> Verified:
        """See `Verifier.verify`."""
        results, ran = self.read_rows(slot, np.array(tokens, np.int64))
        return Verified(results, ran)

    def read_rows(self, slot: int, tokens: Ids | States) -> tuple[Logits, tuple[bytes | None, ...]]:
        """Add tokens to a slot, each as a step would; see `Verifier.verify`.

        Args:
            slot: The slot.
            tokens: int64 [tokens], or float32 [tokens, width] for a tail.

        Returns:
            float32 [tokens, vocab], a trunk's states [tokens, width]; and which blocks ran for each.
        """
        start, level = self.length(slot), float(self._levels[slot])
        forms = self._verification.graphs
        form: Form = "dense" if "dense" in forms and (level == DENSE or "gated" not in forms) else "gated"
        places = np.arange(start, start + len(tokens))
        levels = np.where(places < self._warmup, DENSE, level).astype(np.float32)
        results, ran = self._verification.read(form, slot, start, tokens, levels, self._width)
        self._last[slot] = places[-1]
        if self.gates is None:
            return results, (None,) * len(tokens)
        whole = np.ones(len(self.gates.layers), np.bool_)
        blocks = (whole if ran is None else ran[row] for row in range(len(tokens)))
        return results, tuple(
            None if place < self._warmup else each.tobytes() for place, each in zip(places, blocks, strict=True)
        )

    def read_token(self, slot: int, token: int, options: RequestOptions | None = None) -> Logits:
        """See `Verifier.read_token`."""
        return self.extend(slot, np.array([token], np.int64), options)

    def rewind(self, slot: int, tokens: int) -> None:
        """See `Verifier.rewind`."""
        self.set_length(slot, tokens)

    def digest(self, slot: int, first: int) -> bytes:
        """See `Verifier.digest`."""
        return self.kv.digest(slot, first, self.length(slot))
