"""What suits a model on this machine: its size, what its files hold, the device, and whether skipping can pay."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adaptc.checks.gpu import describe_gpu
from adaptc.checks.model_size import Size, head_dim_of, size_of, size_of_shapes
from adaptc.checks.resources import RUNTIME_BYTES, USUAL_TOKENS
from adaptc.families.model import multimodal_of, text_of
from adaptc.machine.memory import memory_bytes
from adaptc.sources.base import Source
from adaptc.sources.find import find_source
from adaptc.sources.gguf.file import read_gguf
from adaptc.sources.tensors import parameter_shapes
from adaptc.spec.schema import Spec, TargetSpec
from adaptc.starting.argument import PlainModel
from adaptc.starting.plain import ONLY_MODEL, PlainOptions, plain_spec

Goal = Literal["speed", "quality", "both"]
"""What values are chosen for."""

PAYS_FROM = 5_000_000
"""Bytes of a feed-forward block from which skipping it can pay on a CPU: 1.7 MB gained nothing worth having
(docs/results/smollm2-skip.md), 8 MB and 26 MB did (examples/qwen_skip/README.md)."""

_FLOATS = {"float32": 32, "bfloat16": 16, "float16": 16}
_BLOCK = re.compile(r"\.layers\.(\d+)\.(?:mlp|feed_forward|ffn)\.")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class Advice:
    """What suits a model on this machine.

    Attributes:
        spec: The spec that is advised.
        goal: What its values were chosen for.
        family: transformers' name of the model's architecture.
        layers: Number of its layers.
        parameters: Number of its weights.
        stored: What its files hold, e.g. `bfloat16` or `Q4_1`.
        bits: Bits of a weight there.
        trained: Positions the model was trained on.
        bundle: Bytes of the weights in the bundle, by the kind of weights.
        cache_token: Bytes of the KV cache for a token.
        block: Bytes of a feed-forward block as the spec stores it; 0 where there is none to skip.
        gpus: Names of GPUs that run bundles here.
        memory: Bytes of this machine's memory.
    """

    spec: Spec
    goal: Goal
    family: str
    layers: int
    parameters: int
    stored: str
    bits: int
    trained: int
    bundle: Mapping[str, int]
    cache_token: int
    block: int
    gpus: tuple[str, ...]
    memory: int

    @property
    def skipping_can_pay(self) -> bool:
        """Whether a feed-forward block is large enough for a gate before it to gain time."""
        return self.block >= PAYS_FROM

    @property
    def summary(self) -> tuple[str, ...]:
        """What a person wants to know first, a line each."""
        target = self.spec.target
        pays = "can pay" if self.skipping_can_pay else "is too small to pay"
        about = (
            f"{self.family}, {self.layers} layers, {millions(self.parameters)} M parameters, stored as {self.stored}"
        )
        blocks = (f"a feed-forward block has {millions(self.block)} MB: skip_ffn {pays}",) if self.block else ()
        return about, f"{target.weights} on {target.device}: {millions(self.bundle[target.weights])} MB", *blocks


def millions(number: int) -> str:
    """Return a number in millions as a person would write it: 0.06, 3.4, 134, 7,242."""
    value = number / 1e6
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def advise(model: PlainModel, revision: str | None, goal: Goal, folder: Path) -> Advice:
    """Choose the values of a spec for a model and this machine.

    Args:
        model: The model, as a command line names it.
        revision: Branch, tag or commit of a hub id, or None.
        goal: What to choose for.
        folder: Where the spec will stand: its paths start there.

    Returns:
        The advice; no weight was read.

    Raises:
        AdaptcError: the model cannot be found or captured.
    """
    spec = plain_spec(model, PlainOptions(revision))
    source = find_source(spec.models[ONLY_MODEL], Path())
    config = source.config()
    text = text_of(config)
    stored, bits = _stored(source, config)
    gpus = _gpus() if multimodal_of(config) is None else ()
    memory, _ = memory_bytes()
    trained = int(getattr(text, "max_position_embeddings", 0) or USUAL_TOKENS)
    target = TargetSpec(device="cuda" if gpus else "cpu", max_tokens=min(USUAL_TOKENS, trained))
    sizes = {kind: size_of(config, _as(target, kind), "float32") for kind in ("int4", "int8", "fp16", "fp32")}
    target = _as(target, _weights(goal, target.device, sizes, memory))
    cache = 2 * 4 * text.num_hidden_layers * text.num_key_value_heads * head_dim_of(text)
    return Advice(
        spec=_moved(spec.model_copy(update={"target": target}), folder),
        goal=goal,
        family=config.model_type,
        layers=text.num_hidden_layers,
        parameters=sizes["int4"].parameters,
        stored=stored,
        bits=bits,
        trained=trained,
        bundle={kind: size.bundle for kind, size in sizes.items()},
        cache_token=cache,
        block=_block(text, parameter_shapes(config), target),
        gpus=gpus,
        memory=memory,
    )


def _as(target: TargetSpec, weights: Any) -> TargetSpec:
    return TargetSpec(device=target.device, max_tokens=target.max_tokens, weights=weights)


def _weights(goal: Goal, device: str, sizes: Mapping[str, Size], memory: int) -> str:
    """The kind of weights for a goal: the most exact one that leaves this machine a tenth of its memory."""
    wanted = ("int8", "int4") if goal == "quality" else ("int4",)
    if goal == "quality" and device == "cuda":
        wanted = ("fp16", *wanted)
    room = [kind for kind in wanted if sizes[kind].bundle + sizes[kind].cache + RUNTIME_BYTES <= 0.9 * memory]
    return room[0] if room else wanted[-1]


def _moved(spec: Spec, folder: Path) -> Spec:
    """The spec with paths that start from a folder, and not from the current one."""
    if folder.resolve() == Path().resolve():
        return spec

    def moved(name: str) -> str:
        path = Path(name).expanduser()
        return os.path.relpath(path, folder) if path.exists() and not path.is_absolute() else name

    model = spec.models[ONLY_MODEL]
    adapters = tuple(each.model_copy(update={"source": moved(each.source)}) for each in model.adapters)
    return spec.model_copy(
        update={"models": {ONLY_MODEL: model.model_copy(update={"source": moved(model.source), "adapters": adapters})}}
    )


def _block(text: Any, shapes: Mapping[str, Sequence[int]], target: TargetSpec) -> int:
    """Bytes of a feed-forward block, the middle one by size; 0 if there is none, or experts of which few run."""
    if any(getattr(text, name, None) for name in _EXPERTS):
        return 0
    layers: dict[str, dict[str, Sequence[int]]] = {}
    for name, shape in shapes.items():
        if (found := _BLOCK.search(name)) is not None and "vision" not in name:
            layers.setdefault(found[1], {})[name] = shape
    sizes = sorted(size_of_shapes(each, target, "float32").bundle for each in layers.values())
    return sizes[len(sizes) // 2] if sizes else 0


def _stored(source: Source, config: Any) -> tuple[str, int]:
    """What the files hold, and the bits of a weight there."""
    if source.path.suffix == ".gguf":
        return _of_gguf(source.local().path)
    own = getattr(config, "quantization_config", None)
    if own is not None:
        values = own if isinstance(own, dict) else own.to_dict()
        return str(values.get("quant_method", "codes")), int(values.get("bits", 4) or 4)
    name = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return name, _FLOATS.get(name, 32)


def _of_gguf(path: Path) -> tuple[str, int]:
    import gguf

    tensors: Iterable[Any] = read_gguf(path).tensors.values()
    counts: Counter[int] = Counter()
    for tensor in tensors:
        if len(tensor.shape) > 1:
            counts[tensor.kind] += tensor.bytes
    name = gguf.GGMLQuantizationType(counts.most_common(1)[0][0]).name if counts else "F32"
    digits = re.search(r"\d+", name)
    return name, int(digits[0]) if digits else 32


def _gpus() -> tuple[str, ...]:
    found = describe_gpu()
    return () if found["lacks"] else tuple(each["name"] for each in found["gpus"])
