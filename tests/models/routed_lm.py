"""A model in two parts that can be computed by hand: `HistoryLm` split in the middle, each route with its own shift.

The trunk's state of a token holds its id and nothing else, so a tail that did not see all states in their order writes
something else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptc.runtime import Session
from adaptc.runtime.backends.engine import Arrays
from adaptc.runtime.backends.fake import FakeEngine
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.backends.host.prefix_cache import PrefixCache
from adaptc.runtime.backends.host.routed import HostRoutedDecoder
from adaptc.runtime.bundle.manifest import DecoderSpec, TensorSpec
from adaptc.runtime.model.router import RouterNet
from adaptc.runtime.text.tokenizer import Tokenizer
from tests.models.history_lm import HistoryLm, decoder_spec, logits_after

WIDTH = 3
SHIFTS = {"dear": 0, "middle": 7, "cheap": 19}
"""By route: how far its choices are from the checksum."""


class RoutedLm:
    """A trunk and three tails.

    Attributes:
        spec: What they expect.
        trunk: The trunk's engine; `trunk_lm.calls` says how it was run.
        tails: Engines by route, and the models in them.
    """

    def __init__(self, spec: DecoderSpec | None = None) -> None:
        self.spec = spec or decoder_spec()
        self.trunk_lm = HistoryLm(self.spec)
        self.tail_lms = {route: HistoryLm(self.spec) for route in SHIFTS}
        self.trunk = _trunk(self.trunk_lm)
        self.tails = {route: _tail(lm, SHIFTS[route]) for route, lm in self.tail_lms.items()}

    def session(
        self, batch: int = 1, chunk: int = 3, router: RouterNet | None = None, tokenizer: Tokenizer | None = None
    ) -> Session:
        return Session(self.decoder(batch, chunk, router), tokenizer)

    def decoder(
        self, batch: int = 1, chunk: int = 3, router: RouterNet | None = None, prefixes: PrefixCache | None = None
    ) -> HostRoutedDecoder[HostDecoder]:
        trunk = HostDecoder(self.trunk, self.spec, batch, chunk, prefixes=prefixes, name="trunk")
        tails = {
            route: HostDecoder(engine, self.spec, batch, chunk, prefixes=prefixes, name=route)
            for route, engine in self.tails.items()
        }
        return HostRoutedDecoder(trunk, tails, WIDTH, router)

    def greedy(self, prompt: Sequence[int], routes: Sequence[str]) -> list[int]:
        """What is written by these routes, one a token."""
        ids = list(prompt)
        for route in routes:
            ids.append((int(logits_after(ids, self.spec.vocab_size).argmax()) + SHIFTS[route]) % self.spec.vocab_size)
        return ids[len(prompt) :]


def _trunk(lm: HistoryLm) -> FakeEngine:
    run = lm.engine.function
    assert run is not None

    def states(feeds: Arrays, outputs: Arrays) -> None:
        ids = feeds["input_ids"]
        logits = np.zeros((*ids.shape, lm.spec.vocab_size), np.float32)
        run({**feeds, "logits_from": np.zeros(1, np.int64)}, {**outputs, "logits": logits})
        outputs["hidden"][:] = ids[..., None] * np.array([1.0, -0.5, 2.0], np.float32)

    hidden = TensorSpec("hidden", "float32", ("batch", "tokens", WIDTH))
    inputs = tuple(each for each in lm.engine.inputs if each.name != "logits_from")
    return FakeEngine(inputs, (hidden, *lm.engine.outputs[1:]), states)


def _tail(lm: HistoryLm, shift: int) -> FakeEngine:
    run = lm.engine.function
    assert run is not None

    def logits(feeds: Arrays, outputs: Arrays) -> None:
        run({**feeds, "input_ids": feeds["hidden"][..., 0].astype(np.int64)}, outputs)
        outputs["logits"][:] = np.roll(outputs["logits"], shift, axis=-1)

    hidden = TensorSpec("hidden", "float32", ("batch", "tokens", WIDTH))
    return FakeEngine((hidden, *lm.engine.inputs[1:]), lm.engine.outputs, logits)
