"""Pretrained model -> FX graph: `torch.export` through transformers' exporter, module paths kept.

Exporting takes about a second a layer, and the layers of a decoder are alike. So one layer of each kind is exported
(of empty weights: none is read), and the full depth is stamped from them.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import fx

from adaptc.capture.dynamic_rope import follow_positions
from adaptc.capture.kinds import examples, layer_kinds, shallow
from adaptc.capture.plain import plain
from adaptc.capture.rows import keep_rows
from adaptc.capture.stamp import stamp
from adaptc.capture.tidy import tidy
from adaptc.capture.unfuse import unfuse
from adaptc.capture.weights import attach, tied
from adaptc.families.base import DecoderFamily
from adaptc.families.model import names_of
from adaptc.families.table import family_of
from adaptc.ir.fx_graph import VIEWS, FxGraph
from adaptc.ir.operators import attention, experts
from adaptc.ir.weight_names import WeightView
from adaptc.runtime.bundle.names import INPUT_IDS, LOGITS, POSITION_IDS

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def capture(config: PretrainedConfig, weights: Mapping[str, torch.Tensor]) -> FxGraph:
    """Capture a decoder as a pure function of the whole sequence.

    Args:
        config: The model's transformers config.
        weights: Parameters by their transformers names; they are shared, not copied.

    Returns:
        FxGraph(input_ids int64[batch, tokens], position_ids int64[batch, tokens]) -> logits[batch, tokens, vocab].

    Raises:
        LoadError: a layer cannot be stamped, or a weight is missing or of another shape.
    """
    kinds = layer_kinds(config)
    family = family_of(config.model_type)
    assert isinstance(family, DecoderFamily), "what is captured here is a decoder"
    names = names_of(config)
    module, ties, turned = _export(config, kinds, family)
    tidy(module)
    keep_rows(module)
    views = {name: WeightView(name, turned=True) for name in turned} | unfuse(module)
    views = {name: replace(view, turned=view.source in turned) for name, view in views.items()}
    stamp(module, kinds, f"{names.decoder}.{names.layers}")
    views = attach(module, weights, ties, views)
    if views:
        module.meta[VIEWS] = views
    # A fork is a plain module: the exporter's input checks and guards stay behind.
    return FxGraph(module, _dims(module)).fork()


def exported(config: PretrainedConfig, family: DecoderFamily) -> fx.GraphModule:
    """Export one layer of each kind, without weights: whether a family that is in no table can be captured.

    Args:
        config: The model's transformers config.
        family: What its file would state.

    Raises:
        LoadError: torch.export does not follow the model's code.
    """
    module, _, _ = _export(config, layer_kinds(config), family)
    tidy(module)
    return module


def _dims(module: fx.GraphModule) -> dict[str, str]:
    """Return names for the symbols that the exporter numbers (s44)."""
    ids = next(node for node in module.graph.nodes if node.op == "placeholder")
    return {str(size): name for size, name in zip(ids.meta["val"].shape, ("batch", "tokens"), strict=True)}


def _export(
    config: PretrainedConfig, kinds: Sequence[str], family: DecoderFamily
) -> tuple[fx.GraphModule, dict[str, str], set[str]]:
    """Export a model of one layer of each kind, after the first layer.

    Returns:
        The graph, which parameters are one, as `tied` does, and which it has turned, as `plain` does.
    """
    from transformers import AutoModelForCausalLM, initialization
    from transformers.exporters import DynamoConfig, DynamoExporter

    attention.register()
    experts.register()
    small = shallow(config, examples(kinds))
    function = "eager" if family.own_attention else attention.NAME
    # Parameters are allocated but never written, so their pages never exist; computed buffers are real.
    with initialization.no_init_weights():
        model = AutoModelForCausalLM.from_config(
            small, attn_implementation=function, experts_implementation=experts.NAME, dtype=torch.float32
        ).eval()
    experts.refuse_other_experts(model)
    model.tie_weights()  # left out when weights are not initialized
    ties = tied(model)
    turned = plain(model)
    if family.prepare is not None:
        family.prepare(model)
    follow_positions(model)
    ids = torch.zeros(2, 7, dtype=torch.int64)
    # 2 and 7: sizes of 0 and 1 would be taken for constants.
    free = {0: torch.export.Dim("batch", min=1, max=4096), 1: torch.export.Dim("tokens", min=1, max=1 << 20)}
    logging.getLogger("transformers.exporters").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = DynamoExporter().export(
            model,
            {INPUT_IDS: ids, POSITION_IDS: ids.clone(), "use_cache": False},
            DynamoConfig(dynamic=False, dynamic_shapes={INPUT_IDS: free, POSITION_IDS: free}),
        )
        module = exported.program.module()
    # The exporter packs inputs and outputs as keyword trees; a graph takes tensors in order and returns a tuple.
    module.graph.set_codegen(fx.graph.CodeGen())
    module.meta["outputs"] = (LOGITS,)
    return module, ties, turned
