"""Which method a config names, and a folder's tensors with the pieces of quantized ones put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from adaptc.errors import LoadError, one_line
from adaptc.sources.quantized.awq import Awq
from adaptc.sources.quantized.bitsandbytes import Bitsandbytes
from adaptc.sources.quantized.compressed_tensors import CompressedTensors
from adaptc.sources.quantized.fp8 import Fp8
from adaptc.sources.quantized.gptq import GptqPacking
from adaptc.sources.quantized.packed import Method, PackedMatrix, Piece

METHODS: Mapping[str, Callable[[str, Mapping[str, Any]], Method]] = MappingProxyType(
    {
        "gptq": GptqPacking.of,
        "awq": Awq.of,
        "compressed-tensors": CompressedTensors.of,
        "bitsandbytes": Bitsandbytes.of,
        "fp8": Fp8.of,
    }
)
"""By `quant_method`, what reads a quantization config."""


_KEYS = ("quantization_config", "compression_config")


def method_of(origin: str, values: Mapping[str, Any]) -> Method | None:
    """Return how a folder's weights are quantized; None if they are floats.

    Args:
        origin: The model's name in the spec, for errors.
        values: The content of config.json.

    Raises:
        LoadError: by a method that is not read, or in a form of it.
    """
    text = values.get("text_config")
    places = (values, text if isinstance(text, Mapping) else {})
    stated = next((p[key] for p in places for key in _KEYS if p.get(key) is not None), None)
    if stated is None:
        return None
    name = stated.get("quant_method") if isinstance(stated, Mapping) else None
    if name is None and isinstance(stated, Mapping) and (stated.get("load_in_4bit") or stated.get("load_in_8bit")):
        name = "bitsandbytes"  # as old files have it
    if not isinstance(name, str) or name not in METHODS:
        read = ", ".join(METHODS)
        raise LoadError(
            f"{origin}: its weights are quantized by {one_line(name or 'an unnamed method')[:40]}; {read} are read, "
            "and the model as it was before"
        )
    return METHODS[name](origin, stated)


_UNREAD = tuple(
    f"{of}_{what}"
    for of in ("input", "activation", "output", "q", "k", "v", "prob")
    for what in ("scale", "zero_point", "global_scale")
)
"""Leaves of tensors that are of activations and of the KV cache, which are floats here."""


@dataclass(frozen=True, slots=True)
class PutTogether:
    """The tensors of a folder with quantized ones put together.

    Attributes:
        matrices: What pieces stand for, by their weights' names.
        rest: Tensors that are no pieces.
        unread: Names of scales of activations and of KV caches.
    """

    matrices: Mapping[str, PackedMatrix]
    rest: Mapping[str, Piece]
    unread: tuple[str, ...] = ()


def put_together(method: Method, pieces: Mapping[str, Piece]) -> PutTogether:
    """Return the tensors of a folder with quantized ones put together.

    Raises:
        LoadError: as in `Method.matrix`, or pieces are of no weight.
    """
    modules: dict[str, dict[str, Piece]] = {}
    leaves = sorted(method.leaves, key=len, reverse=True)
    for name, piece in pieces.items():
        leaf = next((leaf for leaf in leaves if name.endswith(f".{leaf}")), None)
        if leaf is not None:
            modules.setdefault(name[: -len(leaf) - 1], {})[leaf] = piece
    matrices: dict[str, PackedMatrix] = {}
    unread = tuple(name for name in pieces if name.rpartition(".")[2] in _UNREAD)
    rest = {name: piece for name, piece in pieces.items() if name not in unread}
    for module, own in modules.items():
        matrix = method.matrix(module, own)
        if matrix is not None:
            matrices[f"{module}.weight"] = matrix
            for leaf in own:
                del rest[f"{module}.{leaf}"]
        elif own.keys() != {"weight"}:
            raise method.fault(module, f"{', '.join(own)} make no weight of {method.name}; fetch the model again")
    return PutTogether(matrices, rest, unread)
