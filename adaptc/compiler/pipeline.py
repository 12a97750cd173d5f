"""The list of passes that a spec goes through, made in one place.

`compile`, `compile --dry-run`, `show`, `check`, the manifest's records and the cache's keys all read it here. A pass
stands in the list whether or not it will find something to do: one that does not returns its input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adaptc.compiler import stage_names
from adaptc.errors import SpecError
from adaptc.passes.adapters.adapter_places import AdapterPlaces
from adaptc.passes.adapters.switch_adapters import SwitchAdapters
from adaptc.passes.base import Pass
from adaptc.passes.decoder.fuse_norms import FuseNorms
from adaptc.passes.decoder.fuse_projections import FuseProjections
from adaptc.passes.decoder.kv_cache import KvCache
from adaptc.passes.decoder.logits_from import LogitsFrom
from adaptc.passes.decoder.quantize_cache import QuantizeCache
from adaptc.passes.decoder.sliding_cache import SlidingCache
from adaptc.passes.decoder.verify_drafts import VerifyDrafts
from adaptc.passes.device.device_steps import DeviceSteps
from adaptc.passes.encoder.encoder_attention import EncoderAttention
from adaptc.passes.lower.lower import Lower
from adaptc.passes.quantize.float_weights import FloatWeights
from adaptc.passes.quantize.gptq import Gptq
from adaptc.passes.quantize.quantize import Quantize
from adaptc.passes.quantize.source_codes import SourceCodes
from adaptc.passes.skip_ffn.branch import Branch
from adaptc.passes.skip_ffn.skip_ffn import SkipFfn
from adaptc.passes.targets.legalize import Legalize
from adaptc.passes.targets.partition import Partition
from adaptc.spec.passes import build_passes
from adaptc.spec.schema import QuantizeSpec, Spec, TargetSpec


@dataclass(frozen=True, slots=True)
class CompilePlan:
    """Everything that compiling a spec does, in order.

    Attributes:
        models: Names of the models that are captured.
        to_onnx: Passes from captured graphs to ONNX graphs: the spec's own, `gptq` for int4, `lower`.
        to_target: Passes from ONNX graphs to graphs that the target runs well.
        tunes: Whether gates are timed on this machine then, to keep only those that pay.
        measures_cache: Whether it is then measured how large keys and values become.
        to_emit: Passes that write what was kept in the target's own form.
    """

    models: tuple[str, ...]
    to_onnx: tuple[Pass, ...]
    to_target: tuple[Pass, ...]
    tunes: bool
    measures_cache: bool
    to_emit: tuple[Pass, ...]

    @property
    def passes(self) -> tuple[Pass, ...]:
        """All passes, in order."""
        return (*self.to_onnx, *self.to_target, *self.to_emit)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of all stages, passes among them, as a compile without a cache goes through them."""
        return tuple(self._stages())

    def _stages(self) -> Iterator[str]:
        yield from (stage_names.FIND, stage_names.LOAD)
        for model in self.models:
            yield from (stage_names.read(model), stage_names.capture(model))
        yield from (pass_.name for pass_ in self.to_onnx)
        yield stage_names.ATTACH
        yield from (pass_.name for pass_ in self.to_target)
        if self.tunes:
            yield stage_names.TUNE
        if self.measures_cache:
            yield stage_names.CACHE_RANGES
        yield from (pass_.name for pass_ in self.to_emit)
        yield from (stage_names.WEIGHTS, stage_names.BUNDLE)


def plan_of(spec: Spec, base: Path) -> CompilePlan:
    """What compiling a spec does.

    Args:
        spec: What to compile.
        base: The folder that relative paths in the spec start from.

    Raises:
        SpecError: a pass is unknown, or an option is wrong, which a spec from `read_spec` has only if it is wrong for
            its target.
    """
    target = spec.target
    own = tuple(pass_.at(base) for pass_ in build_passes(spec))
    quantize = spec.quantize or QuantizeSpec()
    by_text = target.weights == "int4" and quantize.method == "gptq"
    rounding = (Gptq(block_size=target.block_size, device=quantize.device),) if by_text else ()
    on_cpu = target.backend == "onnxruntime"  # a bundle for a GPU runs on a CPU too
    if not on_cpu and any(isinstance(pass_, SkipFfn) and pass_.batch == "rows" for pass_ in own):
        raise SpecError(
            f"passes.skip_ffn.batch: rows; {target.backend} runs a block for all rows of a step; auto is right"
        )
    return CompilePlan(
        models=tuple(spec.models),
        to_onnx=(*own, *rounding, Lower()),
        to_target=_onnxruntime(target, quantize) if on_cpu else _tensorrt(target),
        tunes=target.device == "cpu",
        measures_cache=target.kv_cache == "int8",
        to_emit=_forms(target) if on_cpu else (),  # last: what they make is no longer rewritten
    )


def _forms(target: TargetSpec) -> tuple[Pass, ...]:
    """What writes a decoder for ONNX Runtime on a CPU, and for kernels of ours on a GPU."""
    cache = () if target.kv_cache == "fp32" else (QuantizeCache(target.kv_cache),)
    return (
        DeviceSteps(required=target.device == "cuda"),
        *cache,
        SlidingCache(),
        SwitchAdapters(),
        Branch(),
        VerifyDrafts(),
    )


def _onnxruntime(target: TargetSpec, quantize: QuantizeSpec) -> tuple[Pass, ...]:
    """What ONNX Runtime's graphs go through."""
    weights: tuple[Pass, ...]
    match target.weights:
        case "source":
            # A GPU's kernels read activations as they are.
            own = SourceCodes(prepared_inputs=target.device == "cpu", block_size=target.block_size)
            weights = (own, Quantize("int8", target.block_size))
        case "int8" | "int4" as stored:
            rule: Literal["nearest", "hqq"] = "hqq" if quantize.method == "hqq" else "nearest"
            weights = (Quantize(stored, target.block_size, rule),)
        case stored:
            weights = (FloatWeights("fp16" if stored == "fp16" else "fp32"),)
    cache = KvCache(max_tokens=target.max_tokens)
    return EncoderAttention(), cache, LogitsFrom(), FuseNorms(), FuseProjections(), AdapterPlaces(), *weights


def _tensorrt(target: TargetSpec) -> tuple[Pass, ...]:
    """What TensorRT's graphs go through: engines fuse by themselves, so all stays in plain operators."""
    half: Literal["fp16", "bf16"] = "bf16" if target.weights == "bf16" else "fp16"
    cache = KvCache(max_tokens=target.max_tokens, head_multiple=1)
    return cache, FuseProjections(), Legalize(half), Partition()
