"""The source model as torch runs it, in the part of its reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adaptc.evaluation.reference import greedy
from adaptc.verification.outside import TorchModel
from tests.models import vlm
from tests.models.tiny import FAMILIES, VOCAB, model

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [11, 12, 13], np.random.default_rng(0).integers(0, VOCAB, 70).tolist()]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_continued_side_by_side_as_they_are_alone(family: str) -> None:
    written = TorchModel(model(family)).write(PROMPTS, 6)
    assert written == [greedy(model(family), prompt, 6) for prompt in PROMPTS]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_so_are_those_of_models_that_take_images(family: str) -> None:
    written = TorchModel(vlm.model(family)).write(PROMPTS[:3], 6)
    assert written == [greedy(vlm.model(family), prompt, 6) for prompt in PROMPTS[:3]]


def test_an_image_that_was_seen_before_moves_no_position() -> None:
    built = vlm.model("qwen2_vl")
    alone = [greedy(built, prompt, 6) for prompt in PROMPTS[:3]]
    built.model.rope_deltas = torch.tensor([[-3]])  # what a forward pass with an image leaves in the model
    try:
        assert [greedy(built, prompt, 6) for prompt in PROMPTS[:3]] == alone
        assert [TorchModel(built).write([prompt], 6)[0] for prompt in PROMPTS[:3]] == alone
    finally:
        built.model.rope_deltas = None


def test_an_order_of_prompts_is_kept() -> None:
    running = TorchModel(model("llama"))
    assert running.write(PROMPTS[::-1], 4) == running.write(PROMPTS, 4)[::-1]
    assert running.write([], 4) == []
