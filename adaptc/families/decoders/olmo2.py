"""OLMo 2, whose norms stand behind each block, and over all heads of queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.errors import LoadError
from adaptc.families.base import DecoderFamily, GgufHeader, GgufLayout, attention_bias
from adaptc.families.gguf import FOUR_NORMS


def _config(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    window = file.get("olmo2.attention.sliding_window", int, 0)
    if window:
        raise LoadError(
            f"{file.path}: olmo2.attention.sliding_window is {window}, which makes it OLMo 3; OLMo 2 has no such key"
        )
    return attention_bias(file, values)


OLMO2 = DecoderFamily("olmo2", GgufLayout("olmo2", FOUR_NORMS, _config, keys=frozenset({"attention.sliding_window"})))
