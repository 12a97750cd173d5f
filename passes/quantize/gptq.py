"""gptq: choose 4-bit codes by what the layers really see."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from adaptc.errors import PassError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.passes.store import PROCESS, Store
from adaptc.runtime.bundle.names import LOGITS
from adaptc.runtime.progress import SILENT, Progress

if TYPE_CHECKING:
    from adaptc.ir.blocks import Bits


@dataclass(frozen=True, slots=True)
class Gptq(Pass):
    """Choose the codes of every projection so that its outputs, not its weights, change least.

    Before:  weights that `quantize` will round one by one
    After:   the same graph; the program also holds codes, scales and zero points, which `quantize` will store

    Rounding SmolLM2-135M's weights to the nearest code costs 11 % of its perplexity, this 3 % (docs/quantization.md).

    Projections that share their input with no other (attention's output, the second half of a feed-forward block, the
    head) do without zero points: their kernel is quicker, and nothing is lost (docs/quantization.md).

    Each expert of a mixture is rounded by the rows that its router sends to it. The weights that choose experts stay
    floats.

    Needs: FX level, after every pass that changes weights or adds backbones, before lower; calibration text.
    Shapes: unchanged.
    Cost: one forward pass over the calibration text, and rounding (docs/results/compile-times.md).
          Codes are kept as they are chosen: a layer is rounded again only if it, or something before it, has changed,
          and a compile that was stopped goes on where it was.

    Attributes:
        block_size: Neighbouring inputs that share a scale; as in `quantize`.
        device: Where layers run and are rounded; auto is a GPU where torch has one. Codes are the same but for ties.

    Raises:
        PassError: the calibration text is too short, activations are not finite, or there is no such device.

    Reference: Frantar et al., "GPTQ", arXiv:2210.17323.
    """

    name: ClassVar[str] = "gptq"
    block_size: Literal[16, 32, 64, 128, 256] = 32
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def apply(self, program: Program) -> Program:
        return self.apply_with(program, PROCESS)

    def apply_with(self, program: Program, store: Store, progress: Progress = SILENT) -> Program:
        # Imported here: calibration needs this package's blockwise, and may be what is imported first.
        from adaptc.passes.quantize.calibrate import quantize_linears, sample_of
        from adaptc.passes.quantize.experts import expert_forms
        from adaptc.passes.quantize.linears import alone, kept_float, linear_weights
        from adaptc.passes.quantize.quantize import head_block

        blocks = dict(program.blocks)
        for name, graph in program.at_level(FxGraph).items():
            # Weights that another graph has too were chosen there: they are stored once.
            kept = kept_float(graph)
            weights = [weight for weight in linear_weights(graph) if weight not in blocks and weight not in kept]
            sample = sample_of(program, name) if weights else None
            if sample is None:
                continue
            sizes: dict[str, int] = dict.fromkeys(weights, self.block_size)
            if graph.module.meta["outputs"] == (LOGITS,) and list(linear_weights(graph))[-1] == weights[-1]:
                sizes[weights[-1]] = head_block(self.block_size)
            experts = {name: form for name, form in expert_forms(graph, self.block_size).items() if name not in blocks}
            sizes |= {name: size for name, (size, _) in experts.items()}
            bits: dict[str, Bits] = dict.fromkeys([*weights, *experts], 4)
            symmetric = alone(graph) | {name for name, (_, symmetric) in experts.items() if symmetric}
            options: dict[str, Any] = {"block_size": sizes, "symmetric": symmetric, "device": self._device()}
            blocks |= quantize_linears(graph, sample, bits, **options, store=store, progress=progress)
        return replace(program, blocks=blocks) if len(blocks) > len(program.blocks) else program

    def _device(self) -> str:
        if self.device == "cpu":
            return "cpu"
        import torch

        if torch.cuda.is_available():
            return "cuda"
        if self.device == "cuda":
            raise PassError("device: cuda; this torch finds no GPU that it can use; auto or cpu is right")
        return "cpu"
