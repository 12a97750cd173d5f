"""What kind of thing is an emoji? Nine classes, from its picture, its name, and its name spoken.

Frozen encoders (EfficientNet-Lite0, MiniLM, Whisper base) and a small transformer over one token of each. Pixels, token
ids and a waveform go in; resizing and the log-mel spectrogram are parts of the model.

What lies in the middle of an encoder costs nothing more than its last layer, and says other things: MiniLM's embeddings
which words there are, a block of EfficientNet what shapes. So features are of several layers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from transformers import BertConfig, BertModel, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

CLASSES = 9
SIDE = 64
"""Pixels of the picture."""
TOKENS = 16
SAMPLES = 32_000
"""Two seconds at 16 kHz."""
FRAMES = SAMPLES // 160
BLOCK = 10
"""The block of EfficientNet that is read beside its last layer."""
LAYERS = (0, 3, 6)
"""What is read of MiniLM: its embeddings (0) and the states after two of its layers."""
PARTS = {"image": (1280, 112), "text": (384,) * len(LAYERS), "speech": (1024,)}
"""Features of each modality, by the layer that they come from."""
WIDTHS = {name: sum(parts) for name, parts in PARTS.items()}
WIDTH = 128


class ImageEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = EfficientNet.from_name("efficientnet-lite0")
        del self.net._fc

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8[batch, 3, 64, 64] -> float32[batch, 1280 + 112]."""
        net = self.net
        x = F.interpolate(pixels.float(), scale_factor=2.0, mode="bilinear", align_corners=False)
        x = net._swish(net._bn0(net._conv_stem((x - 127) / 128)))
        for index, block in enumerate(net._blocks):
            x = block(x)
            if index == BLOCK:
                middle = x.mean((2, 3))
        return torch.cat([net._swish(net._bn1(net._conv_head(x))).mean((2, 3)), middle], 1)


class TextEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
        self.net = BertModel(config, add_pooling_layer=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """int64[batch, 16] twice -> float32[batch, 3 * 384]: the means over the tokens that are there."""
        found = self.net(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        states = torch.cat([found.hidden_states[layer] for layer in LAYERS], -1)
        there = attention_mask[..., None].float()
        return (states * there).sum(1) / there.sum(1)


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram, by a convolution with the Fourier basis."""

    def __init__(self) -> None:
        super().__init__()
        size = 400
        window = torch.hann_window(size)
        angles = 2 * math.pi * torch.outer(torch.arange(size // 2 + 1), torch.arange(size)) / size
        basis = torch.cat([torch.cos(angles), torch.sin(angles)]) * window
        self.register_buffer("basis", basis[:, None])
        self.register_buffer("mel", torch.zeros(80, size // 2 + 1))

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        """float32[batch, 32000] -> float32[batch, 80, 200]."""
        padded = F.pad(wave[:, None], (200, 200), mode="reflect")
        real, imaginary = F.conv1d(padded, self.basis, stride=160)[..., :FRAMES].chunk(2, 1)
        mel = torch.log10((self.mel @ (real * real + imaginary * imaginary)).clamp(min=1e-10))
        return (torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8) + 4) / 4


class SpeechEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = WhisperConfig(
            d_model=512,
            encoder_layers=6,
            encoder_attention_heads=8,
            encoder_ffn_dim=2048,
            max_source_positions=FRAMES // 2,
        )
        self.mel = LogMel()
        self.net = WhisperEncoder(config)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        """float32[batch, 32000] -> float32[batch, 1024]: mean and maximum over time."""
        states = self.net(self.mel(wave)).last_hidden_state
        return torch.cat([states.mean(1), states.amax(1)], 1)


class Block(nn.Module):
    """A transformer layer, norms first."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Dropout(0.3), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, 4, WIDTH // 4)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.after(x))


class Fusion(nn.Module):
    """A token for each modality and one for the answer; beside them a linear vote of each modality."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.ModuleDict({name: nn.Linear(width, WIDTH) for name, width in WIDTHS.items()})
        self.vote = nn.ModuleDict({name: nn.Linear(width, CLASSES) for name, width in WIDTHS.items()})
        self.answer = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
        self.drop = nn.Dropout(0.4)
        self.blocks = nn.ModuleList([Block() for _ in range(2)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        votes = sum(self.vote[name](self.drop(x)) for name, x in features.items())
        tokens = torch.stack([self.into[name](self.drop(x)) for name, x in features.items()], 1)
        x = torch.cat([self.answer.expand(tokens.shape[0], -1, -1), tokens], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0])) + votes


class Emoji(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"image": ImageEncoder(), "text": TextEncoder(), "speech": SpeechEncoder()})
        # Features are brought to mean 0 and a common spread; what is missing is learned.
        self.mean = nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name, width in WIDTHS.items()})
        self.scale = nn.ParameterDict({name: nn.Parameter(torch.ones(width)) for name, width in WIDTHS.items()})
        self.missing = nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name, width in WIDTHS.items()})
        self.fusion = Fusion()

    def scaled(self, name: str, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean[name]) * self.scale[name]

    def forward(
        self,
        pixels: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        wave: torch.Tensor | None = None,
    ) -> torch.Tensor:
        given = {
            "image": None if pixels is None else self.encoders["image"](pixels),
            "text": None if input_ids is None else self.encoders["text"](input_ids, attention_mask),
            "speech": None if wave is None else self.encoders["speech"](wave),
        }
        rows = next(x.shape[0] for x in given.values() if x is not None)
        features = {
            name: self.missing[name].expand(rows, -1) if x is None else self.scaled(name, x)
            for name, x in given.items()
        }
        return self.fusion(features)


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """What adaptc calls: the model without its weights, and an example of each input."""
    ids = torch.ones(1, TOKENS, dtype=torch.int64)
    return Emoji(), {
        "pixels": torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8),
        "input_ids": ids,
        "attention_mask": ids.clone(),
        "wave": torch.zeros(1, SAMPLES),
    }
