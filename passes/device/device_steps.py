"""device_steps: a decoder's step as kernels that a GPU runs, beside the graph that a CPU runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from adaptc.errors import PassError
from adaptc.ir.device_lowering import DeviceLowering, PromptLowering
from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.passes.device.calls import device_step
from adaptc.passes.device.prompt_layers import prompt_layers
from adaptc.passes.device.reading import read_atoms
from adaptc.runtime.bundle.gpu_steps.device_step import DeviceStep
from adaptc.runtime.bundle.names import KEY, past


@dataclass(frozen=True, slots=True)
class DeviceSteps(Pass):
    """Write a decoder's step as a list of GPU kernels.

    Before:  one graph with a KV cache
    After:   the graph stays, and beside it: lookup, rows, gemm, attention, gemm, rows, gemm, rows, gemm, …, head

    A product with a weight is a kernel, attention is one, and all that lies between two of these is one: a small
    program over a row, which the runtime compiles. A block that may be skipped is the same calls under its gate, which
    the kernels read themselves. Codes and scales are those of the graph: a bundle holds them once for both devices.

    Needs: ONNX level, after the pass that stores weights, before branch.
    Shapes: each row is one token at its position; hidden states float32, what products read float16.
    Cost: nothing for the CPU; some hundred KB of the bundle.

    Attributes:
        required: Whether a graph that kernels cannot compute is refused; if not, it runs on a CPU only.

    Raises:
        PassError: a decoder has an operator that no kernel computes, if `required`.
    """

    name: ClassVar[str] = "device_steps"
    required: bool = False

    def apply(self, program: Program) -> Program:
        found: dict[str, DeviceLowering] = {}
        for name, graph in program.at_level(OnnxGraph).items():
            main = graph.model.graph
            if name in program.steps or not _is_decoder(main):
                continue
            try:
                step = _step(program, name, main)
            except PassError:
                if self.required:
                    raise
                continue
            found[name] = DeviceLowering(step, _tensors(main, step), _prompt(main, step))
        return replace(program, steps={**program.steps, **found}) if found else program


def cpu_only(program: Program) -> dict[str, str]:
    """Return why decoders have no step, by the name of their graph; called for the program that the pass was given."""
    found = {}
    for name, graph in program.at_level(OnnxGraph).items():
        if name not in program.steps and _is_decoder(graph.model.graph):
            try:
                _step(program, name, graph.model.graph)
            except PassError as error:
                found[name] = str(error)
    return found


def _step(program: Program, name: str, graph: ir.Graph) -> DeviceStep:
    """A graph's step.

    Raises:
        PassError: no kernels compute it.
    """
    if name in program.adapted_products:
        raise PassError("adapters that requests choose among have no kernels")
    return device_step(read_atoms(graph))


def _is_decoder(graph: ir.Graph) -> bool:
    return any(value.name == past(0, KEY) for value in graph.inputs)


def _prompt(graph: ir.Graph, step: DeviceStep) -> PromptLowering | None:
    """The layers that ONNX Runtime reads long prompts with, if a decoder can be cut into them."""
    try:
        return prompt_layers(graph, step)
    except PassError:
        return None


def _tensors(graph: ir.Graph, step: DeviceStep) -> Mapping[str, ir.TensorProtocol]:
    """The weights that a step reads."""
    names = {name for call in step.calls() for name in call.reads if name not in step.values and name != step.source}
    names |= {name for weight in step.gemms for name in (weight.codes, weight.scales, weight.zeros, weight.bias)}
    names |= {name for table in step.lookups for name in (table.codes, table.scales, table.zeros)}
    names |= {name for layer in step.attentions for name in (layer.cosine, layer.sine)}
    found = {name: graph.initializers[name].const_value for name in sorted(names - {""})}
    return {name: tensor for name, tensor in found.items() if tensor is not None}
