"""What `adaptc check` says of adapters that requests choose among: whether they can be kept, and how large they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adaptc.checks.finding import Finding
from adaptc.families.model import multimodal_of
from adaptc.sources.base import Source
from adaptc.spec.schema import Spec

_MERGE = "merge them, without names"
_JOINED = ("stitch", "draft_with")


def adapter_findings(spec: Spec, name: str, source: Source, config: Any) -> Iterator[Finding]:
    """Yield what there is to say of a model's adapters that have names; nothing of a model without.

    Args:
        spec: What would be compiled.
        name: The model's name in it.
        source: The model.
        config: Its config.

    Raises:
        LoadError: one is of another base, of a kind that is not kept, or damaged.
    """
    names = [each.name for each in spec.models[name].adapters if each.name is not None]
    if not names:
        return
    faults = [f"adapters {', '.join(names)}: {fault}, or {_MERGE}" for fault in _faults(spec, config)]
    yield from (Finding(name, "error", fault) for fault in faults)
    if not faults:
        kept = source.kept_adapters()
        sizes = (f"{each.name} (rank {each.rank}, {each.bytes / 1e6:,.1f} MB)" for each in kept)
        yield Finding(name, "ok", f"adapters that requests choose among: {', '.join(sizes)}")


def _faults(spec: Spec, config: Any) -> Iterator[str]:
    """What adapters cannot be kept with, and what would be right."""
    target = spec.target
    if target.backend != "onnxruntime" or target.device != "cpu":
        where = f"backend: {target.backend}" if target.backend != "onnxruntime" else f"device: {target.device}"
        yield f"{where} has no form with adapters; backend: onnxruntime with device: cpu is right"
    joined = [entry.name for entry in spec.passes if entry.name in _JOINED]
    if joined:
        yield f"{', '.join(joined)} joins models, and they are of one; a spec without it is right"
    if multimodal_of(config) is not None:
        yield f"{config.model_type} takes images, and has no form with adapters; a model of text alone is right"
