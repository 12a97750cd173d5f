"""adaptc: a compiler that makes pretrained models spend compute only where it pays."""

from __future__ import annotations

__version__ = "0.1.0"
