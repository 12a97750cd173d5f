"""The rewrites, one file each; `PASSES` is all of them."""

from __future__ import annotations

if __name__ != "adaptc.passes":
    raise ImportError("import adaptc.passes, not passes")

from adaptc.passes.base import Pass, Pipeline, Step
from adaptc.passes.branch import Branch
from adaptc.passes.drop_modality import DropModality
from adaptc.passes.float_weights import FloatWeights
from adaptc.passes.fuse_norms import FuseNorms
from adaptc.passes.fuse_projections import FuseProjections
from adaptc.passes.gptq import Gptq
from adaptc.passes.kv_cache import KvCache
from adaptc.passes.legalize import Legalize
from adaptc.passes.logits_from import LogitsFrom
from adaptc.passes.lower import Lower
from adaptc.passes.quantize import Quantize
from adaptc.passes.skip_ffn import SkipFfn
from adaptc.passes.split_regions import SplitRegions
from adaptc.passes.stitch import Stitch

__all__ = ["PASSES", "Pass", "Pipeline", "Step"]

PASSES: dict[str, type[Pass]] = {
    pass_.name: pass_
    for pass_ in (
        DropModality,
        SkipFfn,
        Stitch,
        Gptq,
        Lower,
        KvCache,
        LogitsFrom,
        FuseNorms,
        FuseProjections,
        FloatWeights,
        Quantize,
        Branch,
        Legalize,
        SplitRegions,
    )
}
"""By name, in the order the default target runs them; the last two are of TensorRT targets."""
