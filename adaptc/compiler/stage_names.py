"""What the stages of a compile that are no passes are called; nothing heavy is imported for it."""

from __future__ import annotations

FIND = "find models"
LOAD = "load torch and transformers"
ATTACH = "attach weights"
TUNE = "does it pay?"
EACH_GATE = "does it pay, gate by gate?"
THRESHOLDS = "thresholds of the gates that stay"
ROWS = "rows of a step"
CACHE_RANGES = "ranges of the KV cache"
WEIGHTS = "write weights"
BUNDLE = "write bundle"


def read(model: str) -> str:
    """The stage that reads what a model says of itself."""
    return f"read {model}"


def capture(model: str) -> str:
    """The stage that captures a model's graph."""
    return f"capture {model}"
