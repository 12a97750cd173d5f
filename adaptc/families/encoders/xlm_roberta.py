"""XLM-RoBERTa (arXiv:1911.02116): RoBERTa of a hundred languages, and the embedding models E5 and BGE-M3 made of it."""

from __future__ import annotations

from dataclasses import replace

from adaptc.families.encoders.roberta import ROBERTA

XLM_ROBERTA = replace(ROBERTA, model_type="xlm-roberta")
