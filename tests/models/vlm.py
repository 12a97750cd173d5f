"""Tiny random multimodal language models as Hugging Face folders, and what transformers says of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from tokenizers import AddedToken, Tokenizer

from adaptc.capture.multimodal import capture_multimodal
from adaptc.ir.program import Program
from adaptc.runtime.bundle.plan import Run
from tests.models.tiny_tokenizer import byte_level, save

SIDE = 8
ANY_SIZE = ("qwen2_vl", "qwen2_5_vl")
MARKS = ("<image>", "<fake_token_around_image>", "<global-img>", "<start_of_image>", "<end_of_image>")
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 2,
    "projection_dim": 16,
}
GEMMA_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
WINDOWED = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 2,
    "window_size": 8,
    "fullatt_block_indexes": [1],
}
"""An image encoder that sees windows of 2 places in its first and last layer."""
Pixels = npt.NDArray[np.float32]
Given = dict[str, npt.NDArray[Any]]
"""What a processor gives beside token ids."""


def tokenizer() -> Tokenizer:
    """Bytes, and the tokens of images."""
    made = byte_level()
    made.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in MARKS])
    return made


def config(family: str, **text: Any) -> Any:
    """A tiny config of a family."""
    words = tokenizer()
    inner = {**TEXT, "vocab_size": words.get_vocab_size(), "model_type": "llama", **text}
    image = words.token_to_id("<image>")
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    if family == "llava":
        vision = {**VISION, "model_type": "clip_vision_model"}
        return transformers.LlavaConfig(text_config=inner, vision_config=vision, image_token_index=image)
    if family == "gemma3":
        made = {name: value for name, value in VISION.items() if name != "projection_dim"}
        inner |= {"model_type": "gemma3_text", "layer_types": GEMMA_LAYERS[: inner["num_hidden_layers"]]}
        inner |= {"sliding_window": 6, "query_pre_attn_scalar": 16, "pad_token_id": 0}
        return transformers.Gemma3Config(
            text_config=inner,
            vision_config={**made, "model_type": "siglip_vision_model"},
            mm_tokens_per_image=4,
            image_token_id=image,
            boi_token_id=words.token_to_id("<start_of_image>"),
            eoi_token_id=words.token_to_id("<end_of_image>"),
        )
    if family == "qwen2_5_vl":
        inner = {**inner, "model_type": "qwen2_5_vl_text", "hidden_size": 64, "rope_parameters": rope}
        vision = {**WINDOWED, "out_hidden_size": 64}
        return transformers.Qwen2_5_VLConfig(text_config=inner, vision_config=vision, image_token_id=image)
    if family == "qwen2_vl":
        inner = {**inner, "model_type": "qwen2_vl_text", "hidden_size": 64, "rope_parameters": rope}
        vision = {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 64, "patch_size": 2, "mlp_ratio": 2}
        return transformers.Qwen2VLConfig(text_config=inner, vision_config=vision, image_token_id=image)
    kind = {"idefics3": transformers.Idefics3Config, "smolvlm": transformers.SmolVLMConfig}[family]
    vision = {name: value for name, value in VISION.items() if name != "projection_dim"}
    return kind(text_config=inner, vision_config=vision, image_token_id=image, scale_factor=2)


@cache
def model(family: str, **text: Any) -> Any:
    """The family's model with random weights."""
    torch.manual_seed(0)
    built = transformers.AutoModelForImageTextToText.from_config(config(family, **text), attn_implementation="eager")
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0.0, 0.3)
    return built.eval()


@cache
def program(family: str, layers: int = 3) -> Program:
    """The family's model as adaptc captures it."""
    built = model(family, num_hidden_layers=layers)
    graph = capture_multimodal(built.config, dict(built.named_parameters(remove_duplicate=False)))
    return Program({"lm": graph}, (Run("lm"),))


def write(folder: Path, family: str, keep: str = "all", weights: str = "fp32", more: str = "", **text: Any) -> Any:
    """Write folder/model and folder/model.yaml; returns the model."""
    built = model(family, **text)
    built.save_pretrained(folder / "model")
    save(tokenizer(), folder / "model")
    (folder / "model/preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "do_normalize": true, "min_pixels": 16}'
    )
    (folder / "model.yaml").write_text(
        "version: 1\nmodels:\n  lm: {source: model}\npasses:\n  - drop_modality:\n"
        f"      {{modalities: {{image: [pixel_values], text: [input_ids]}}, keep: {keep}, stand_in: empty}}\n"
        f"{more}target: {{weights: {weights}, max_tokens: 96, batch: 3}}\n"
    )
    return built


def pixels(count: int = 1, seed: int = 0) -> Pixels:
    """Images as a processor gives them: float32 [count, 3, SIDE, SIDE]."""
    return np.random.default_rng(seed).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


def two_images(family: str, seed: int = 0) -> Given:
    """Two images, by name, as the family's processor gives them."""
    if family in ANY_SIZE:  # 4 rows of 6 patches and 8 rows of 2, of 3 channels, 2 frames, 2 rows and 2 columns
        patches = np.random.default_rng(seed).normal(size=(40, 24)).astype(np.float32)
        return {"pixel_values": patches, "image_grid_thw": np.array([[1, 4, 6], [1, 8, 2]])}
    both = pixels(2, seed)
    return {"pixel_values": both if family in ("llava", "gemma3") else both[None]}


def logits(model: Any, ids: list[int], images: Given | None = None) -> npt.NDArray[np.float32]:
    """transformers' own logits: float32 [tokens, vocab]."""
    text = torch.tensor([ids])
    given: dict[str, Any] = {name: torch.from_numpy(value) for name, value in (images or {}).items()}
    if "image_grid_thw" in given:
        given["mm_token_type_ids"] = (text == model.config.image_token_id).int()
    if given and model.config.model_type == "gemma3":
        given["token_type_ids"] = (text == model.config.image_token_id).int()
    with torch.no_grad():
        found = model(text, use_cache=False, **given).logits[0]
    result: npt.NDArray[np.float32] = found.numpy()
    return result


def greedy(model: Any, ids: list[int], count: int, images: Given | None = None) -> list[int]:
    """What transformers generates: greedily, with everything recomputed at each token."""
    given = list(ids)
    for _ in range(count):
        given.append(int(logits(model, given, images)[-1].argmax()))
    return given[len(ids) :]
