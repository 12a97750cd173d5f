"""A tiny random model as a Hugging Face folder with its spec: what a user points adaptc at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tests.models.tiny import COMMON, random_model
from tests.models.tiny_tokenizer import byte_level, save


def write(folder: Path, model_type: str = "llama", weights: str = "fp32", **options: Any) -> tuple[Path, Any]:
    """Write folder/model and folder/model.yaml; returns the spec's path and the model."""
    tokenizer = byte_level()
    special = {"vocab_size": tokenizer.get_vocab_size(), "bos_token_id": 0, "eos_token_id": 1}
    model = random_model(model_type, {**COMMON, **special, **options})
    model.save_pretrained(folder / "model")
    save(tokenizer, folder / "model")
    spec = folder / "model.yaml"
    spec.write_text(f"version: 1\nmodels:\n  lm: {{source: model}}\ntarget: {{weights: {weights}, max_tokens: 64}}\n")
    return spec, model


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """What transformers generates: greedily, with everything recomputed at each token."""
    given = list(ids)
    with torch.no_grad():
        for _ in range(count):
            given.append(int(model(torch.tensor([given]), use_cache=False).logits[0, -1].argmax()))
    return given[len(ids) :]


def scores(model: Any, ids: list[int]) -> npt.NDArray[np.float32]:
    """Log probabilities that transformers gives to all ids but the first, float32[ids - 1]."""
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
    result: npt.NDArray[np.float32] = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
    return result
