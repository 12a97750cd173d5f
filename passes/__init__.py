"""The rewrites, one file each; `PASSES` is all of them."""

from __future__ import annotations

if __name__ != "adaptc.passes":
    raise ImportError("import adaptc.passes, not passes")

from adaptc.passes.adapters.adapter_places import AdapterPlaces
from adaptc.passes.adapters.switch_adapters import SwitchAdapters
from adaptc.passes.base import Pass, Pipeline, Step
from adaptc.passes.decoder.draft_with import DraftWith
from adaptc.passes.decoder.fuse_norms import FuseNorms
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.decoder.kv_cache import KvCache
from adaptc.passes.decoder.logits_from import LogitsFrom
from adaptc.passes.decoder.quantize_cache import QuantizeCache
from adaptc.passes.decoder.sliding_cache import SlidingCache
from adaptc.passes.decoder.verify_drafts import VerifyDrafts
from adaptc.passes.device.device_steps import DeviceSteps
from adaptc.passes.drop_modality.drop_modality import DropModality
from adaptc.passes.encoder.encoder_attention import EncoderAttention
from adaptc.passes.lower.lower import Lower
from adaptc.passes.quantize.float_weights import FloatWeights
from adaptc.passes.quantize.gptq import Gptq
from adaptc.passes.quantize.quantize import Quantize
from adaptc.passes.quantize.source_codes import SourceCodes
from adaptc.passes.skip_ffn.branch import Branch
from adaptc.passes.skip_ffn.skip_ffn import SkipFfn
from adaptc.passes.stitch.stitch import Stitch
from adaptc.passes.targets.legalize import Legalize
from adaptc.passes.targets.partition import Partition

__all__ = ["PASSES", "Pass", "Pipeline", "Step"]

PASSES: dict[str, type[Pass]] = {
    pass_.name: pass_
    for pass_ in (
        DropModality,
        SkipFfn,
        Stitch,
        DraftWith,
        Gptq,
        Lower,
        EncoderAttention,
        KvCache,
        LogitsFrom,
        FuseNorms,
        FuseProjections,
        AdapterPlaces,
        FloatWeights,
        SourceCodes,
        Quantize,
        DeviceSteps,
        QuantizeCache,
        SlidingCache,
        SwitchAdapters,
        Branch,
        VerifyDrafts,
        Legalize,
        Partition,
    )
}
"""By name, in the order the default target runs them; the last two are of TensorRT targets."""
