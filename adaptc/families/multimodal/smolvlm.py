"""SmolVLM, which is built as Idefics3 is."""

from __future__ import annotations

from dataclasses import replace

from adaptc.families.multimodal.idefics3 import IDEFICS3

SMOLVLM = replace(IDEFICS3, model_type="smolvlm")
