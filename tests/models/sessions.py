"""Sessions over an engine, with the KV cache in the host's memory."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from adaptc.runtime import DecoderSpec, Engine, LoadTargets, Session, SkipGates
from adaptc.runtime.backends.host.decoder import HostDecoder
from adaptc.runtime.text.tokenizer import Tokenizer


def session_of(
    engine: Engine,
    spec: DecoderSpec,
    tokenizer: Tokenizer | None = None,
    *,
    batch: int = 1,
    chunk: int = 512,
    gates: SkipGates | None = None,
    budget: float | None = None,
    clock: Callable[[], float] = monotonic,
    load_targets: LoadTargets | None = None,
) -> Session:
    """A session that decodes with one graph."""
    decoder = HostDecoder(engine, spec, batch, chunk, gates)
    return Session(decoder, tokenizer, budget=budget, clock=clock, load_targets=load_targets)
