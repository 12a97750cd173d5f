"""Module that a factory built -> FX graph: `torch.export` with a free batch, module paths kept."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from adaptc.capture.tidy import tidy
from adaptc.errors import LoadError
from adaptc.ir.fx_graph import UNUSED, FxGraph
from adaptc.runtime.bundle.names import LOGITS

BATCH = "batch"


def capture_module(module: torch.nn.Module, examples: Mapping[str, torch.Tensor]) -> FxGraph:
    """Capture a module as a pure function of its inputs.

    Args:
        module: In eval mode; its weights are shared, not copied. Its `forward` takes each input by name and returns a
            tensor, which is called `logits`, or tensors by name.
        examples: One tensor for each input; axis 0 is the batch and stays free, every other size is fixed.

    Returns:
        FxGraph of the inputs by name, each of shape [batch, ...].

    Raises:
        LoadError: the module cannot be exported, or needs a fixed batch.
    """
    batches = {value.shape[0] if value.ndim else 0 for value in examples.values()}
    if len(batches) != 1 or 0 in batches:
        raise LoadError(f"examples: batches of {sorted(batches)}; one batch size, on axis 0 of each input, is right")
    # Two rows: a size of 0 or 1 would be taken for a constant.
    rows = {name: torch.cat([value[:1], value[:1]]) for name, value in examples.items()}
    free = {name: {0: torch.export.Dim(BATCH, min=1, max=1 << 16)} for name in rows}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        names = _outputs(module(**rows))
        try:
            exported = torch.export.export(module, (), rows, dynamic_shapes=free).module()
        except Exception as error:  # torch.export raises whatever the traced code does
            if "Constraints violated" in str(error):
                raise LoadError(
                    "capture: forward fixes the batch; x.shape[0] leaves it free, len(x) does not"
                ) from error
            raise LoadError(f"capture: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}") from error
    assert isinstance(exported, fx.GraphModule)
    exported.graph.set_codegen(fx.graph.CodeGen())
    exported.meta["outputs"] = names
    _flat_output(exported)
    _register_constants(exported)
    tidy(exported)
    exported.meta[UNUSED] = _unused(exported, module)
    inputs = [node for node in exported.graph.nodes if node.op == "placeholder"]
    return FxGraph(exported, {str(inputs[0].meta["val"].shape[0]): BATCH}).fork()


def _outputs(result: Any) -> tuple[str, ...]:
    if isinstance(result, torch.Tensor):
        return (LOGITS,)
    if isinstance(result, dict) and result and all(isinstance(value, torch.Tensor) for value in result.values()):
        return tuple(map(str, result))
    raise LoadError(f"capture: forward returns {type(result).__name__}; a tensor, or tensors by name, are right")


def _flat_output(module: fx.GraphModule) -> None:
    """Make the graph return a tuple, whatever tree the module returns."""
    output = module.graph.output_node()
    output.args = (tuple(output.all_input_nodes),)
    if len(module.meta["outputs"]) != len(output.all_input_nodes):
        raise LoadError("capture: two outputs of the module are the same value; name it once")


def _unused(exported: fx.GraphModule, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters that the whole model does not read, such as stand-ins for a missing modality."""
    read = {str(node.target) for node in exported.graph.nodes if node.op == "get_attr"}
    return {name: parameter for name, parameter in module.named_parameters() if name not in read}


def _register_constants(module: fx.GraphModule) -> None:
    """Make buffers of the tensors that tracing left as plain attributes, so that they survive a fork."""
    for node in module.graph.nodes:
        if node.op != "get_attr":
            continue
        owner, _, leaf = str(node.target).rpartition(".")
        holder = module.get_submodule(owner)
        value = getattr(holder, leaf)
        if leaf not in holder._parameters and leaf not in holder._buffers:
            delattr(holder, leaf)
            holder.register_buffer(leaf, value)
        if "val" not in node.meta or node.meta["val"] is None:
            node.meta["val"] = value
