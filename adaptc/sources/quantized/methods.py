"""Which method a config names, and a folder's tensors with the pieces of quantized ones put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from adaptc.errors import LoadError, one_line
from adaptc.sources.quantized.awq import Awq
from adaptc.sources.quantized.bitsandbytes import Bitsandbytes
from adaptc.sources.quantized.compressed_tensors import CompressedTensors
from adaptc.sources.quantized.fp8 import Fp8
from adaptc.sources.quantized.gptq import Gptq
from adaptc.sources.quantized.packed import Method, PackedMatrix, Piece

METHODS: Mapping[str, Callable[[str, Mapping[str, Any]], Method]] = MappingProxyType(
    {
        "gptq": Gptq.of,
        "awq": Awq.of,
        "compressed-tensors": CompressedTensors.of,
        "bitsandbytes": Bitsandbytes.of,
        "fp8": Fp8.of,
    }
)
"""By `quant_method`, what reads a quantization config."""


def method_of(origin: str, values: Mapping[str, Any]) -> Method | None:
    """Return how a folder's weights are quantized; None if they are floats.

    Args:
        origin: The model's name in the spec, for errors.
        values: The content of config.json.

    Raises:
        LoadError: by a method that is not read, or in a form of it.
    """
    stated = values.get("quantization_config", values.get("compression_config"))
    if stated is None:
        return None
    name = stated.get("quant_method") if isinstance(stated, Mapping) else None
    if name is None and isinstance(stated, Mapping) and (stated.get("load_in_4bit") or stated.get("load_in_8bit")):
        name = "bitsandbytes"  # as old files have it
    if name not in METHODS:
        read = ", ".join(METHODS)
        raise LoadError(
            f"{origin}: its weights are quantized by {one_line(name or 'an unnamed method')[:40]}; {read} are read, "
            "and the model as it was before"
        )
    return METHODS[name](origin, stated)


def put_together(method: Method, pieces: Mapping[str, Piece]) -> tuple[dict[str, PackedMatrix], dict[str, Piece]]:
    """Return the matrices that pieces stand for, by their weights' names, and the tensors that are none's pieces.

    Raises:
        LoadError: as in `Method.matrix`.
    """
    modules: dict[str, dict[str, Piece]] = {}
    leaves = sorted(method.leaves, key=len, reverse=True)
    for name, piece in pieces.items():
        leaf = next((leaf for leaf in leaves if name.endswith(f".{leaf}")), None)
        if leaf is not None:
            modules.setdefault(name[: -len(leaf) - 1], {})[leaf] = piece
    matrices: dict[str, PackedMatrix] = {}
    rest = dict(pieces)
    for module, own in modules.items():
        matrix = method.matrix(module, own)
        if matrix is not None:
            matrices[f"{module}.weight"] = matrix
            for leaf in own:
                del rest[f"{module}.{leaf}"]
    return matrices, rest
