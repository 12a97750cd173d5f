"""Bundles of tiny models with steps for a GPU, and sessions over them: the GPU's on a stand-in, the CPU's as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from adaptc.compiler import pipeline
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.program import Program
from adaptc.passes import Pass
from adaptc.runtime.backends.onnxruntime_cuda.loading import kernel_decoder
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.generation.session import Session
from adaptc.spec.reading import read_spec
from tests.fakes.cuda import FakeCuda
from tests.models import folder, skipping


def compiled(into: Path, model_type: str = "llama", weights: str = "fp32", *passes: Pass, **options: Any) -> Bundle:
    """A bundle of a random model for a GPU; its folder, with the model, is `into`."""
    spec, _ = folder.write(into, model_type, weights, **options)
    given = read_spec(spec, ("target.device=cuda", "target.max_tokens=96"))
    with patch.object(pipeline, "build_passes", lambda _: passes):
        return compile_spec(given, into, into / "bundle", Cache(into / "cache")).bundle


def gating(gates: SkipGates, rank: int) -> Pass:
    """Stands for `skip_ffn`: gates whose blocks give way to a path of this rank, or to nothing for 0."""

    class Gating(skipping.Gating):
        """See `skipping.Gating`."""

        def apply(self, program: Program) -> Program:
            gated = skipping.with_gates(program.graph("lm", FxGraph), low_rank=rank > 0, rank=rank)
            return replace(program.with_graph("lm", gated), gates={"lm": self.gates})

    Gating.gates = gates
    return Gating()


class Gpu:
    """A session on the stand-in, with what it was made of."""

    def __init__(self, bundle: Bundle, batch: int = 1, chunk: int = 64, cuda: FakeCuda | None = None) -> None:
        self.cuda = FakeCuda() if cuda is None else cuda
        self.decoder = kernel_decoder(self.cuda, bundle, batch, chunk)
        self.session = Session(self.decoder)
