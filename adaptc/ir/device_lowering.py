"""A decoder's step as GPU kernels, before it is written to a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from adaptc.runtime.bundle.gpu_steps.device_prompt import PromptPieces
    from adaptc.runtime.bundle.gpu_steps.device_step import DeviceStep, RowKernel, StepCall


@dataclass(frozen=True, slots=True)
class PromptLowering:
    """What ONNX Runtime reads prompts with on a GPU.

    Attributes:
        pieces: The calls; in which files their graphs lie is left open.
        models: The graphs, by name.
    """

    pieces: PromptPieces
    models: Mapping[str, ir.Model]


@dataclass(frozen=True, slots=True)
class DeviceLowering:
    """What `device_steps` makes of a graph.

    Attributes:
        step: The calls; where weights lie is left open.
        tensors: The weights that they read, by name.
        prompt: What reads long prompts; None where the step's own calls do.
    """

    step: DeviceStep
    tensors: Mapping[str, ir.TensorProtocol]
    prompt: PromptLowering | None = None

    def text(self) -> str:
        """The calls, one a line, and then each kernel over rows; the same text for the same step."""
        step = self.step
        lines = [_call(step, call) for call in step.body]
        if step.head:
            lines += ["head:", *(_call(step, call) for call in step.head)]
        for index, kernel in enumerate(step.row_kernels):
            lines += ["", f"# rows {index}", *_program(kernel)]
        return "\n".join(lines) + "\n"


def _call(step: DeviceStep, call: StepCall) -> str:
    about = ""
    if call.kind == "gemm":
        weight = step.gemms[call.which]
        place = f" at {weight.offset} of {weight.stride}" if weight.results < weight.stride else ""
        about = f"{weight.codes}: int{weight.bits}" if weight.block else f"{weight.codes}: float{weight.bits}"
        about = f", {about}[{weight.results}, {weight.columns}]{place}"
    elif call.kind == "attention":
        layer = step.attentions[call.which]
        about = f", layer {layer.layer}, {layer.heads} heads of {layer.width} over {layer.kv_heads}"
        about += f", window {layer.window}" if layer.window else ""
    values = {name: f"%{name}: {value.dtype}[{value.width}]" for name, value in step.values.items()}
    writes = ", ".join(values[name] for name in call.writes)
    reads = ", ".join(f"%{name}" if name in values else name for name in call.reads)
    gate = "" if call.gate is None else f" {'unless' if call.otherwise else 'if'} gate {call.gate}"
    zeros = ", else zeros" if call.zeros else ""
    decides = "" if call.decides is None else f", decides gate {call.decides}"
    kind = f"rows {call.which}" if call.kind == "rows" else call.kind
    return f"{writes} = {kind}({reads}{about}){gate}{zeros}{decides}"


def _program(kernel: RowKernel) -> list[str]:
    lines = []
    for index, line in enumerate(kernel.lines):
        names = line.op in ("input", "weight")
        args = [str(arg) if names else f"%{arg}" for arg in line.args]
        lines.append(f"%{index}: [{line.width}] = {line.op}({', '.join([*args, *(f'{n:g}' for n in line.numbers)])})")
    ends = ", ".join(f"%{output.line}: {output.dtype}" for output in kernel.outputs)
    gate = "" if kernel.gate is None else f"; gate %{kernel.gate}"
    return [*lines, f"-> {ends}{gate}"]
