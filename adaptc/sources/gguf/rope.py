"""The kind of RoPE that a GGUF file states, as transformers' `rope_parameters`."""

from __future__ import annotations

from typing import Any

from adaptc.errors import LoadError
from adaptc.sources.gguf.file import GgufFile

FACTORS = "rope_freqs.weight"
"""The tensor that holds factors of RoPE's wavelengths; it belongs to the config, not to the parameters."""

# What Llama 3.1 and later were trained with; the file keeps only the factors that follow from it.
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def rope_parameters(file: GgufFile, architecture: str) -> dict[str, Any]:
    """Return transformers' `rope_parameters`.

    Raises:
        LoadError: a kind of scaling that is not supported, or a value of the wrong type.
    """
    # 10,000 is what llama.cpp takes where the file states none.
    theta = file.get(f"{architecture}.rope.freq_base", float, 10000.0)
    # Files from before there were kinds have `scale_linear` alone.
    old = file.get(f"{architecture}.rope.scale_linear", float, 1.0)
    kind = file.get(f"{architecture}.rope.scaling.type", str, "none" if old == 1.0 else "linear")
    factor = file.get(f"{architecture}.rope.scaling.factor", float, old)
    if FACTORS in file.tensors:
        return {"rope_type": "llama3", "rope_theta": theta} | _llama3(file, theta)
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return {"rope_type": "default", "rope_theta": theta}
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    if kind == "yarn":
        original = file.need(f"{architecture}.rope.scaling.original_context_length", int)
        yarn = {"factor": factor, "original_max_position_embeddings": original}
        return {"rope_type": "yarn", "rope_theta": theta} | yarn
    raise LoadError(f"{file.path}: RoPE scaling {kind!r} is not supported; supported: none, linear, yarn, llama3")


def _llama3(file: GgufFile, theta: float) -> dict[str, Any]:
    """Recover Llama 3's four RoPE numbers from the factors that llama.cpp works out from them."""
    import numpy as np

    stored = file.read(file.tensors[FACTORS]).ravel()
    wavelength = 2 * np.pi * theta ** (np.arange(stored.size) / stored.size)
    factor = float(stored.max())
    low = _LLAMA3_ROPE["original_max_position_embeddings"] / _LLAMA3_ROPE["low_freq_factor"]
    high = _LLAMA3_ROPE["original_max_position_embeddings"] / _LLAMA3_ROPE["high_freq_factor"]
    share = (low / wavelength - 1) / (low / high - 1)
    smooth = 1 / ((1 - share) / factor + share)
    expected = np.where(wavelength < high, 1.0, np.where(wavelength > low, factor, smooth))
    if not np.allclose(stored, expected, rtol=1e-3):
        raise LoadError(f"{file.path}: {FACTORS} does not follow Llama 3's rule; no other is supported")
    return {"factor": factor, **_LLAMA3_ROPE}
