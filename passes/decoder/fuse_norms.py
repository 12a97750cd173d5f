"""fuse_norms: residual add and RMSNorm become one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from onnxscript.rewriter import pattern
from onnxscript.rewriter.ort_fusions.skip_normalization import fuse_skip_rms_normalization

from adaptc.ir.onnx_graph import OnnxGraph
from adaptc.ir.program import Program
from adaptc.passes.base import Pass
from adaptc.passes.match import name_new_nodes


@dataclass(frozen=True, slots=True)
class FuseNorms(Pass):
    """Put each residual add into the norm that follows it.

    Before:  h = x + y;  n = RMSNormalization(h)
    After:   n, h = SkipSimplifiedLayerNormalization(x, y)

    The rewriting is onnxscript's own; we only give the norm the name its rules know.

    Needs: ONNX level, after every pass that looks for residual adds (`skip_ffn` cuts there).
    Shapes: unchanged.

    Reference: SkipSimplifiedLayerNormalization, onnxruntime contrib operators, com.microsoft version 1.
    """

    name: ClassVar[str] = "fuse_norms"

    def apply(self, program: Program) -> Program:
        for name, graph in program.at_level(OnnxGraph).items():
            if any(node.op_type == "RMSNormalization" for node in graph.model.graph.all_nodes()):
                fork = graph.fork()
                fork.model.opset_imports["com.microsoft"] = 1
                pattern.RewriteRuleSet([_Simplified().rule()]).apply_to_model(fork.model)
                fuse_skip_rms_normalization(fork.model)
                fork.model.graph.sort()  # who read the sum between it and the norm, as cosine gates do, stood before it
                name_new_nodes(fork.model.graph)
                program = program.with_graph(name, fork)
        return program


class _Simplified(pattern.RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript has no types
    """onnxruntime's kernel for RMSNormalization goes by SimplifiedLayerNormalization."""

    def pattern(self, op: Any, x: Any, scale: Any) -> Any:
        return op.RMSNormalization(x, scale, _allow_other_attributes=True, _outputs=["normed"])

    def rewrite(self, op: Any, x: Any, scale: Any, normed: Any) -> Any:
        epsilon = normed.producer().attributes.get_float("epsilon", 1e-5)
        return op.SimplifiedLayerNormalization(x, scale, axis=-1, epsilon=epsilon, stash_type=1)
