"""What an adapter makes of each parameter of its base: W + s B A, or a tensor in the place of W.

PEFT runs an adapter beside the base and we put it into the weights, so what counts is what PEFT's unmerged model
computes: a change of a tied embedding leaves the head as it is, unless the adapter says that it ties them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from adaptc.errors import LoadError, one_line
from adaptc.families.model import model_of, multimodal_of, renamed
from adaptc.ir.low_rank import KeptAdapter, LowRank
from adaptc.sources.adapters.config import LoraConfig, lora_config
from adaptc.sources.adapters.files import Adapter, AdapterTensor, stored_tensors

if TYPE_CHECKING:
    import torch

Change = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""From a parameter as it is by now, and as the base has it, to what it becomes; all float32."""

_ONLY_PRODUCTS = "; requests choose among changes of linear layers: merge it, without a name"

_PAIR = re.compile(r"(.+)\.(?:lora_([AB])\.weight|lora_embedding_([AB]))")
_LORA_BIAS = re.compile(r"(.+)\.lora_B\.bias")
_LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Base:
    """What an adapter is held against.

    Attributes:
        shapes: Shapes of the model's parameters by name.
        kinds: For each module that can have A and B its kind: `linear`, `conv1d` (weights stand as [in, out]) or
            `embedding`.
        table: Name of the embedding's weight.
        head: Name of the head's weight, or "".
        tied: Whether the head is the embedding.
        config: The model's config.
    """

    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, str]
    table: str
    head: str
    tied: bool
    config: Any


def base_of(config: Any) -> Base:
    """Return what adapters of a model of this config are held against; no weight is read."""
    import torch
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        model = model_of(config)
    kinds: dict[str, str] = {}
    for name, module in model.named_modules():
        for kind, of in (("linear", torch.nn.Linear), ("conv1d", Conv1D), ("embedding", torch.nn.Embedding)):
            if isinstance(module, of):
                kinds[name] = kind
    names = {id(module): name for name, module in model.named_modules()}
    head = model.get_output_embeddings()
    return Base(
        shapes={name: tuple(value.shape) for name, value in model.state_dict().items()},
        kinds=kinds,
        table=f"{names[id(model.get_input_embeddings())]}.weight",
        head="" if head is None else f"{names[id(head)]}.weight",
        tied=bool(config.tie_word_embeddings),
        config=config,
    )


@dataclass(frozen=True, slots=True)
class Changes:
    """What adapters change.

    Attributes:
        by_parameter: For each parameter that is changed, its changes in order.
        unties: Whether the head is no longer the embedding.
        remarks: What is worth a warning, a sentence each.
    """

    by_parameter: Mapping[str, tuple[Change, ...]]
    unties: bool
    remarks: tuple[str, ...]


def changes_of(adapters: tuple[Adapter, ...], base: Base, origin: str) -> Changes:
    """Return what adapters change of a model.

    Args:
        adapters: In the order of the spec; their changes add up.
        base: What they are held against.
        origin: The base's name in the spec.

    Raises:
        LoadError: an adapter is of another base, of a kind that is not merged, or damaged.
    """
    by_parameter: dict[str, list[Change]] = {}
    remarks: list[str] = []
    for adapter in adapters:
        made = _held_against(adapter, base)
        shared = {base.table, base.head} if base.tied and made.config.ties_head else set()
        for name, change in made.changes():
            # The file may hold what the two share twice.
            for each in () if name in shared and name == base.head else shared if name in shared else {name}:
                by_parameter.setdefault(each, []).append(change)
        remarks += made.remarks(origin)
    changed = {name: tuple(changes) for name, changes in by_parameter.items()}
    unties = base.tied and changed.get(base.table) != changed.get(base.head)
    if not unties and base.tied:
        changed.pop(base.head, None)
    return Changes(changed, unties, tuple(remarks))


def kept_of(adapter: Adapter, base: Base) -> KeptAdapter:
    """Return what an adapter adds to products, for a bundle that keeps it beside its weights.

    Args:
        adapter: It has a name.
        base: What it is held against.

    Raises:
        LoadError: as `changes_of`; or it changes what is no product with a weight.
    """
    return KeptAdapter(adapter.name, adapter.origin, dict(_held_against(adapter, base).low_ranks()))


def remarks_of(adapters: Iterable[Adapter], base: Base, origin: str) -> tuple[str, ...]:
    """Return what is worth a warning of adapters that are kept, a sentence each; arguments as for `changes_of`."""
    return tuple(remark for each in adapters for remark in _held_against(each, base).remarks(origin))


def _held_against(adapter: Adapter, base: Base) -> _OneAdapter:
    tensors = dict(stored_tensors(adapter))
    if base.config is not None and multimodal_of(base.config) is not None:
        tensors = _of_today(base.config, tensors)
    return _OneAdapter(adapter, lora_config(adapter.origin, adapter.folder()), tensors, base)


def _of_today(config: Any, tensors: Mapping[str, AdapterTensor]) -> dict[str, AdapterTensor]:
    """Tensors of a multimodal model's adapter by today's names of its modules."""
    cut = re.compile(r"\.(lora_\w+(?:\.weight|\.bias)?|base_layer\.\w+|weight|bias)$")
    ends = {name: found.start() for name in tensors if (found := cut.search(name)) is not None}
    news = renamed(config, {f"{name[:end]}.weight" for name, end in ends.items()})
    return {
        (
            news[f"{name[: ends[name]]}.weight"].removesuffix(".weight") + name[ends[name] :] if name in ends else name
        ): each
        for name, each in tensors.items()
    }


@dataclass(frozen=True, slots=True)
class _OneAdapter:
    """An adapter held against its base."""

    adapter: Adapter
    config: LoraConfig
    tensors: Mapping[str, AdapterTensor]
    base: Base

    def changes(self) -> Iterator[tuple[str, Change]]:
        """Yield each parameter that is changed, with how."""
        pairs, replaced = self._parts()
        for name, tensor in replaced.items():
            yield name, partial(_replaced, tensor.read, self.adapter.weight)
        for module, pair in pairs.items():
            yield from self._pair(module, pair)

    def low_ranks(self) -> Iterator[tuple[str, LowRank]]:
        """Yield each weight whose product is added to, with what is added; a tied head has the embedding's name."""
        pairs, replaced = self._parts()
        for module in (module for module in pairs if self.base.kinds[module] == "embedding"):
            raise LoadError(f"{self.adapter.origin}: {module} is an embedding{_ONLY_PRODUCTS}")
        for name in replaced:
            raise LoadError(f"{self.adapter.origin}: {name} is replaced as a whole{_ONLY_PRODUCTS}")
        for module, pair in pairs.items():
            if f"{module}.lora_B.bias" in self.tensors:
                raise LoadError(f"{self.adapter.origin}: {module} has a bias beside B{_ONLY_PRODUCTS}")
            name = f"{module}.weight"
            scale = self._scale(module, pair)
            read = partial(_floats, pair["A"].read), partial(_floats, pair["B"].read, scale)
            tied = self.base.tied and name == self.base.head
            rank, inputs = pair["A"].shape
            yield self.base.table if tied else name, LowRank(module, rank, inputs, pair["B"].shape[0], *read)

    def _parts(self) -> tuple[dict[str, dict[str, AdapterTensor]], dict[str, AdapterTensor]]:
        """A and B of each module that has them, and the tensors that take a parameter's place, by its name."""
        targeted = self._targets()
        targets = {name for name in self.base.kinds if targeted(name)}
        pairs: dict[str, dict[str, AdapterTensor]] = {}
        replaced: dict[str, AdapterTensor] = {}
        for name, tensor in self.tensors.items():
            if (found := _PAIR.fullmatch(name)) is not None:
                pairs.setdefault(found[1], {})[found[2] or found[3]] = tensor
            elif (found := _LORA_BIAS.fullmatch(name)) is None:
                replaced[self._parameter(name)] = tensor
        self._refuse_gaps(targets, pairs)
        if not pairs.keys() & targets and not replaced:
            raise LoadError(f"{self.adapter.origin}: it changes nothing: no module of this model is one of its targets")
        return {module: pairs[module] for module in sorted(pairs.keys() & targets)}, replaced

    def remarks(self, origin: str) -> Iterator[str]:
        """Yield what is worth a warning."""
        targeted = self._targets()
        unread = {found[1] for name in self.tensors if (found := _PAIR.fullmatch(name)) and not targeted(found[1])}
        if unread:
            yield (
                f"{self.adapter.origin}: {len(unread)} modules have matrices and are no targets by its config; they "
                f"are not read, nor by peft: {', '.join(sorted(unread)[:3])}{', …' if len(unread) > 3 else ''}"
            )
        ours, theirs = (_last(name) for name in (origin, self.config.base))
        if theirs and not (ours.startswith(theirs) or theirs.startswith(ours)):
            trained = self.config.base[:100]
            yield f"{self.adapter.origin}: by its config it was trained on {trained}; this is {origin[:100]}"
        if any((self.adapter.folder() / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
            yield f"{self.adapter.origin}: it has a tokenizer of its own, which is not read; that of the base is taken"

    def _targets(self) -> Callable[[str], bool]:
        head = self.base.head.removesuffix(".weight")
        kinds = self.base.kinds
        return self.config.targets(lambda name: kinds.get(name) in ("linear", "conv1d") and name != head)

    def _parameter(self, name: str) -> str:
        """The parameter that a tensor stands for as a whole."""
        parameter = name.replace(".base_layer.", ".")
        if name.endswith(("lora_magnitude_vector", "lora_magnitude_vector.weight")):
            raise LoadError(f"{self.adapter.origin}: {name}: DoRA; adaptc merges plain LoRA")
        if parameter not in self.base.shapes:
            raise LoadError(f"{self.adapter.origin}: {name} has no place in this model: {self._why(name)}")
        shape, wanted = self.tensors[name].shape, self.base.shapes[parameter]
        if shape != wanted:
            more = "; it was trained with a vocabulary of another size" if shape[1:] == wanted[1:] else ""
            raise LoadError(f"{self.adapter.origin}: {name} is {list(shape)}, the base's {list(wanted)}{more}")
        return parameter

    def _why(self, name: str) -> str:
        """What tells that an adapter is of another base."""
        depth = 1 + max((int(found[1]) for each in self.base.shapes if (found := _LAYER.search(each))), default=-1)
        layer = _LAYER.search(name)
        if layer is not None and int(layer[1]) >= depth > 0:
            return f"the base has {depth} layers; it is an adapter of another base"
        return "it is an adapter of another base, or of a kind that adaptc does not merge"

    def _refuse_gaps(self, targets: set[str], pairs: Mapping[str, Mapping[str, AdapterTensor]]) -> None:
        for module in sorted(pairs):
            if module not in self.base.kinds:
                raise LoadError(
                    f"{self.adapter.origin}: {module} has no place in this model: {self._why(f'{module}.')}"
                )
            if len(pairs[module]) < 2:
                raise LoadError(f"{self.adapter.origin}: {module} has only one of A and B; the file is damaged")
        tied = {self.base.head.removesuffix(".weight")} if self.base.tied and self.config.ties_head else set()
        for module in sorted(targets - pairs.keys() - tied):
            raise LoadError(
                f"{self.adapter.origin}: by its config it changes {module}, and its file has nothing for it; it is an "
                "adapter of another base, or damaged"
            )

    def _pair(self, module: str, pair: Mapping[str, AdapterTensor]) -> Iterator[tuple[str, Change]]:
        """The changes of a module that has A and B."""
        name, scale = f"{module}.weight", self._scale(module, pair)
        yield name, partial(_added, pair["A"].read, pair["B"].read, scale, self._flipped(module))
        bias = self.tensors.get(f"{module}.lora_B.bias")
        if bias is not None:
            name = f"{module}.bias"
            if name not in self.base.shapes or bias.shape != (pair["B"].shape[0],):
                raise LoadError(
                    f"{self.adapter.origin}: {module} has a bias beside B, which the base's layer cannot take"
                )
            yield name, partial(_added_bias, bias.read, scale)

    def _flipped(self, module: str) -> bool:
        """Whether its weight stands as [in, out]; PEFT has [out, in] = B [out, rank] A [rank, in]."""
        return self.base.kinds[module] in ("embedding", "conv1d")

    def _scale(self, module: str, pair: Mapping[str, AdapterTensor]) -> float:
        """What B A of a module is multiplied by; both are of its sizes."""
        a, b, shape = pair["A"], pair["B"], self.base.shapes[f"{module}.weight"]
        out, inner = shape[::-1] if self._flipped(module) else shape
        if len(a.shape) != 2 or a.shape[1] != inner or b.shape != (out, a.shape[0]):
            raise LoadError(
                f"{self.adapter.origin}: {module}: A is {list(a.shape)} and B {list(b.shape)}, the base's weight "
                f"{list(shape)}; it is an adapter of another base"
            )
        return self.config.scale(module, a.shape[0]) * self.adapter.weight


def _added(
    a: Callable[[], torch.Tensor],
    b: Callable[[], torch.Tensor],
    scale: float,
    flipped: bool,
    now: torch.Tensor,
    _: torch.Tensor,
) -> torch.Tensor:
    delta = b().float() @ a().float()
    return now.add(delta.T if flipped else delta, alpha=scale)


def _floats(read: Callable[[], torch.Tensor], scale: float = 1.0) -> Any:
    """A matrix in float32, multiplied."""
    return (read().float() * scale).contiguous().numpy()


def _added_bias(read: Callable[[], torch.Tensor], scale: float, now: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return now.add(read().float(), alpha=scale)


def _replaced(read: Callable[[], torch.Tensor], weight: float, now: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    saved = read().float()
    return saved if weight == 1.0 and now is base else now.add(saved - base, alpha=weight)


def _last(name: str) -> str:
    """A model's own name, in small letters, without what stands before and what its file's name ends with."""
    return (
        one_line(name).rstrip("/").rpartition("/")[2].rpartition(":")[2].lower().partition("@")[0].removesuffix(".gguf")
    )
