"""Decoders that verify, of real graphs: made of a program, and compared with the steps that they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaptc.compiler.weights_file import write_graphs
from adaptc.ir.decoder_spec import decoder_spec
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Backbone, Program
from adaptc.runtime.backends.engine import Engine
from adaptc.runtime.backends.host.dense_twin import Form, TwinEngine
from adaptc.runtime.backends.host.prefix_cache import PrefixCache
from adaptc.runtime.backends.host.verifying import VerifyingDecoder
from adaptc.runtime.backends.onnxruntime_cpu.engine import OrtEngine
from adaptc.runtime.bundle.manifest import VerificationGraph
from adaptc.runtime.model.options import NO_OPTIONS, RequestOptions
from tests.models import tiny

BACKBONE = Backbone("lm", "llama", tiny.VOCAB, 0, (), None, 128)


@dataclass(frozen=True)
class Compared:
    """A run of several tokens, and as many steps.

    Attributes:
        tokens: How many.
        same_cache: Whether they leave the same bits.
        widest: The largest difference of their logits.
        same_ran: Whether the same blocks ran.
    """

    tokens: int
    same_cache: bool
    widest: float
    same_ran: bool


def compared(
    decoder: VerifyingDecoder, ids: Sequence[int], options: RequestOptions = NO_OPTIONS, prompt: int = 5
) -> list[Compared]:
    """Runs of 1 to 8 of the tokens after a prompt, each with the steps of the same tokens."""
    rest = [*ids[prompt:]]
    decoder.start(0, np.array(ids[:prompt], np.int64), options)
    logits, ran, kept = [], [], []
    for token in rest:
        logits.append(decoder.decode([token])[0].copy())
        ran.append(decoder.ran(0))
        kept.append(decoder.digest(0, 0))
    found = []
    for tokens in range(1, min(8, len(rest)) + 1):
        decoder.rewind(0, prompt)
        verified = decoder.verify(0, rest[:tokens])
        widest = float(np.abs(verified.logits - np.stack(logits[:tokens])).max())
        same_cache = decoder.digest(0, 0) == kept[tokens - 1]
        found.append(Compared(tokens, same_cache, widest, verified.ran == tuple(ran[:tokens])))
    return found


@contextmanager
def verifying(program: Program, folder: Path, batch: int = 1) -> Iterator[VerifyingDecoder]:
    """A decoder of a program's graph `lm` after `verify_drafts`, by ONNX Runtime and on one thread.

    Args:
        program: Has its gates' batch policy under `gates`, if it has any.
        folder: Where its files go.
        batch: Slots.
    """
    graphs = program.at_level(OnnxGraph)
    for name, content in write_graphs(graphs, folder, "weights.data").items():
        (folder / f"{name}.onnx").write_bytes(content)

    def load(name: str) -> OrtEngine:
        return OrtEngine(folder / f"{name}.onnx", 1)

    gates = program.gates.get("lm")
    engine: Engine = load("lm")
    verification: dict[Form, Sequence[VerificationGraph]] = {"dense": program.verification["lm"]}
    if gates is not None:
        verification = {"gated": program.verification["lm"]}
        if gates.dense:
            verification["dense"] = program.verification[gates.dense]
            names: dict[Form, str] = {"gated": "lm", "dense": gates.dense}
            inputs, outputs = engine.inputs, engine.outputs
            engine.close()
            engine = TwinEngine(inputs, outputs, lambda form: load(names[form]), ("gated", "dense"))
    spec = decoder_spec(graphs["lm"], BACKBONE)
    assert spec is not None
    decoder = VerifyingDecoder(
        engine, spec, batch, 64, gates, prefixes=PrefixCache(0), name="lm", graphs=verification, load=load
    )
    try:
        yield decoder
    finally:
        decoder.close()
