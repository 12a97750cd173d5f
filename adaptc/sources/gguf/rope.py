"""The kind of RoPE that a GGUF file states, as transformers' `rope_parameters`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adaptc.errors import LoadError
from adaptc.families.base import GgufLayout
from adaptc.sources.gguf.file import GgufFile

FACTORS = "rope_freqs.weight"
"""The tensor that holds factors of RoPE's wavelengths; it belongs to the config, not to the parameters."""

LONG_FACTORS = {"long_factor": "rope_factors_long.weight", "short_factor": "rope_factors_short.weight"}
"""The tensors that hold LongRoPE's factors, by transformers' names; they belong to the config too."""

# What Llama 3.1 and later were trained with; the file keeps only the factors that follow from it.
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def rope_parameters(file: GgufFile, layout: GgufLayout, values: Mapping[str, Any], part: int) -> dict[str, Any]:
    """Return transformers' `rope_parameters`.

    Args:
        file: The header.
        layout: How GGUF files hold the family.
        values: The config values so far: `head_dim` and `max_position_embeddings` are read.
        part: How many numbers of a head RoPE turns.

    Raises:
        LoadError: a kind of scaling that is not supported, or a value of the wrong type.
    """
    share = {"partial_rotary_factor": part / values["head_dim"]} if layout.partial_rotary else {}
    if layout.long_rope and any(name in file.tensors for name in LONG_FACTORS.values()):
        return share | _long(file, layout.architecture, values, part)
    return share | _static(file, layout, values)


def _static(file: GgufFile, layout: GgufLayout, values: Mapping[str, Any]) -> dict[str, Any]:
    """The kinds that do not depend on how long a text is."""
    prefix = layout.architecture
    # 10,000 is what llama.cpp takes where the file states none.
    theta = file.get(f"{prefix}.rope.freq_base", float, 10000.0)
    # Files from before there were kinds have `scale_linear` alone; a factor without a kind is linear.
    kind = file.get(f"{prefix}.rope.scaling.type", str, "linear")
    old = file.get(f"{prefix}.rope.scale_linear", float, 1.0)
    factor = file.get(f"{prefix}.rope.scaling.factor", float, old) or 1.0
    attention = file.get(f"{prefix}.rope.scaling.attn_factor", float, 1.0)
    if not (theta > 0 and factor > 0 and math.isfinite(theta) and math.isfinite(factor)):
        raise LoadError(f"{file.path}: RoPE of base {theta} and factor {factor}; the file is damaged")
    if kind not in ("none", "linear", "yarn"):
        raise LoadError(f"{file.path}: RoPE scaling {kind!r} is not supported; supported: none, linear, yarn, llama3")
    if kind != "yarn" and attention != 1.0:
        key = f"{prefix}.rope.scaling.attn_factor"
        raise LoadError(f"{file.path}: {key} is {attention} with RoPE scaling {kind!r}; it is supported with yarn")
    if kind == "none":
        factor = 1.0
    if FACTORS in file.tensors and layout.rope_factors:
        if kind == "yarn" or factor != 1.0:
            raise LoadError(f"{file.path}: {FACTORS} and RoPE scaling {kind!r} together are not supported; one is")
        return {"rope_type": "llama3", "rope_theta": theta} | _llama3(file, theta, values["head_dim"])
    if kind == "yarn":
        trained = values["max_position_embeddings"]
        original = file.get(f"{prefix}.rope.scaling.original_context_length", int, trained) or trained
        yarn = {"factor": factor, "original_max_position_embeddings": original}
        if attention != 1.0:
            yarn["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0)
        return {"rope_type": "yarn", "rope_theta": theta} | yarn
    if factor == 1.0:
        return {"rope_type": "default", "rope_theta": theta}
    return {"rope_type": "linear", "rope_theta": theta, "factor": factor}


def _long(file: GgufFile, prefix: str, values: Mapping[str, Any], part: int) -> dict[str, Any]:
    """LongRoPE: factors of wavelengths for short and for long texts, and one factor on scores."""
    key = f"{prefix}.rope.scaling.type"
    kind = file.get(key, str, "longrope")
    if kind not in ("longrope", "none"):
        raise LoadError(f"{file.path}: {key} is {kind!r} beside {LONG_FACTORS['long_factor']}; 'longrope' is right")
    original = file.need(f"{prefix}.rope.scaling.original_context_length", int)
    factors = {}
    for each, name in LONG_FACTORS.items():
        if name not in file.tensors:
            raise LoadError(f"{file.path}: no tensor {name}; LongRoPE needs {' and '.join(LONG_FACTORS.values())}")
        factors[each] = file.read(file.tensors[name]).ravel().tolist()
        if len(factors[each]) != part // 2:
            raise LoadError(f"{file.path}: {name} has {len(factors[each])} factors; {part // 2} are right")
    return {
        "rope_type": "longrope",
        "rope_theta": file.get(f"{prefix}.rope.freq_base", float, 10000.0),
        "original_max_position_embeddings": original,
        "factor": values["max_position_embeddings"] / max(1, original),
        "attention_factor": file.get(f"{prefix}.rope.scaling.attn_factor", float, 1.0),
        **factors,
    }


def _llama3(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """Recover Llama 3's four RoPE numbers from the factors that llama.cpp works out from them."""
    import numpy as np

    stored = file.read(file.tensors[FACTORS]).ravel()
    if stored.size != head_dim // 2:
        raise LoadError(f"{file.path}: {FACTORS} has {stored.size} factors; heads of {head_dim} need {head_dim // 2}")
    wavelength = 2 * np.pi * theta ** (np.arange(stored.size) / stored.size)
    factor = float(stored.max())
    low = _LLAMA3_ROPE["original_max_position_embeddings"] / _LLAMA3_ROPE["low_freq_factor"]
    high = _LLAMA3_ROPE["original_max_position_embeddings"] / _LLAMA3_ROPE["high_freq_factor"]
    share = (low / wavelength - 1) / (low / high - 1)
    with np.errstate(all="ignore"):  # factors of a damaged file may be anything
        smooth = 1 / ((1 - share) / factor + share)
        expected = np.where(wavelength < high, 1.0, np.where(wavelength > low, factor, smooth))
    if not np.allclose(stored, expected, rtol=1e-3):
        raise LoadError(f"{file.path}: {FACTORS} does not follow Llama 3's rule; no other is supported")
    return {"factor": factor, **_LLAMA3_ROPE}
