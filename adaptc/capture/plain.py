"""Modules that say the same in a usual form: linear layers as torch has them, activations as one operator."""

from __future__ import annotations

from typing import Any

import torch


def plain(model: Any) -> set[str]:
    """Put usual modules in the place of transformers' own ones that compute the same, in place.

    Args:
        model: transformers' model; its weights are empty.

    Returns:
        Names of the weights that are [outputs, inputs] now and [inputs, outputs] in the model's files; of experts, with
        an axis of these before.
    """
    from transformers.activations import FastGELUActivation, NewGELUActivation
    from transformers.models.falcon.modeling_falcon import FalconLinear
    from transformers.models.llama4.modeling_llama4 import Llama4TextExperts
    from transformers.pytorch_utils import Conv1D

    turned = set()
    for path, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
            with torch.device("meta"):
                linear = torch.nn.Linear(inputs, outputs)
            model.set_submodule(path, linear.to_empty(device="cpu"))
            turned.add(f"{path}.weight")
        elif isinstance(module, FalconLinear):  # it writes its product with the transposed weight out
            with torch.device("meta"):
                linear = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            linear.weight, linear.bias = module.weight, module.bias
            model.set_submodule(path, linear)
        elif isinstance(module, Llama4TextExperts):
            for name, old in list(module.named_parameters(recurse=False)):
                experts, inputs, outputs = old.shape
                setattr(module, name, torch.nn.Parameter(old.new_empty(experts, outputs, inputs)))
                turned.add(f"{path}.{name}")
        elif isinstance(module, NewGELUActivation | FastGELUActivation):
            model.set_submodule(path, torch.nn.GELU(approximate="tanh"))
    return turned
