"""Names of the tensors that graphs read and write, and of a bundle's files: each is spelled here alone.

The compiler makes graphs with these names, and the runtime binds by them. docs/bundle.md says what each tensor holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
TOKEN_TYPE_IDS = "token_type_ids"
PIXEL_VALUES = "pixel_values"
INPUT_FEATURES = "input_features"
"""Input of an encoder of sounds: float32 [batch, mel bands, frames]."""

POSITION_IDS = "position_ids"
"""Input of captured models, int64 [batch, tokens]; of a decoder only where images have rows and columns, int64
[3, batch, tokens] (M-RoPE, arXiv:2409.12191)."""

POSITIONS = "positions"
"""Input of a decoder in partitions: int32 [batch, tokens]."""

CACHE_POSITIONS = "cache_positions"
"""Input of a decoder in partitions: int32 [kv_bucket], 0, 1, 2, …: the positions of the cache that a step reads."""

HIDDEN = "hidden"
"""What a graph reads in the place of token ids, or gives in the place of logits, if it is one part of a decoder."""

LOGITS = "logits"

EMBEDDING = "embedding"
"""Output of an encoder of texts: float32 [batch, width], a vector of each."""

STATES = "states"
"""Output of an encoder of sounds: float32 [batch, positions, width]."""

LOGITS_FROM = "logits_from"
"""Input of a decoder: the first of a step's tokens that logits are wanted of."""

SEQLENS_K = "seqlens_k"
TOTAL_SEQUENCE_LENGTH = "total_sequence_length"

TOKEN_POSITIONS = "token_positions"
"""Input of a decoder with layers that keep a window: int64 [batch, tokens], what their rotary embedding turns by."""

ROWS = "rows"
"""Input of a graph that verifies drafted tokens: int64 [n], which of its tokens each call of the attention reads."""

THRESHOLD = "threshold"
"""Input of a graph with skip gates: float32 [batch, tokens]; -inf runs every block."""

RAN = "ran"
"""Output of a graph with skip gates: bool [batch, gates], or bool [gates] where the rows of a step decide together."""

ADAPTER = "adapter"
"""Input of a decoder's form with adapters: int64 [batch], which of them each sequence has, from 1; 0 for none."""

IMAGE_PLACES = "image_places"
"""Input of a decoder: int64 [places], which of a step's tokens are images'."""

IMAGE_FEATURES = "image_features"
"""Input of a decoder: float32 [places, width], what stands there."""

KEY, VALUE = "key", "value"
CACHE_KINDS = (KEY, VALUE)

_CACHE = re.compile(r"(past|present)\.(\d+)\.(key|value)")
_ROPE = "rope."


def past(layer: int, kind: str) -> str:
    """Name of a layer's cache as an input; `kind` is KEY or VALUE."""
    return f"past.{layer}.{kind}"


def present(layer: int, kind: str) -> str:
    """Name of a layer's cache as an output; `kind` is KEY or VALUE."""
    return f"present.{layer}.{kind}"


def present_after(layer: int, kind: str, row: int) -> str:
    """Name of a layer's cache after one row of several, as an output; `kind` is KEY or VALUE."""
    return f"{present(layer, kind)}.{row}"


def window_lengths(number: int) -> str:
    """What `SEQLENS_K` is to the layers of a window, counted in the positions that their cache holds: int32 [batch]."""
    return f"window.{number}.{SEQLENS_K}"


def window_total(number: int) -> str:
    """What `TOTAL_SEQUENCE_LENGTH` is to the layers of a window, counted in the same way: int32 []."""
    return f"window.{number}.{TOTAL_SEQUENCE_LENGTH}"


def cache_scale(layer: int, kind: str) -> str:
    """Name of the scales of a layer's cache, if it holds codes; `kind` is KEY or VALUE."""
    return f"cache.{layer}.{kind}.scales"


def step_cache(layer: int, kind: str) -> str:
    """Name of what a step of a decoder in partitions adds to a layer's cache; `kind` is KEY or VALUE."""
    return f"new.{layer}.{kind}"


@dataclass(frozen=True, slots=True)
class CacheTensor:
    """Which part of the KV cache a tensor is.

    Attributes:
        side: "past" for an input, "present" for an output.
        layer: Counted from 0.
        kind: KEY or VALUE.
    """

    side: str
    layer: int
    kind: str


def cache_tensor(name: str | None) -> CacheTensor | None:
    """What `past` and `present` made of a tensor's name; None for any other tensor."""
    match = _CACHE.fullmatch(name or "")
    return None if match is None else CacheTensor(match[1], int(match[2]), match[3])


def rope_table(number: int, kind: str) -> str:
    """Name of a table of rotary embeddings, float [positions, width / 2]; `kind` is "cos" or "sin"."""
    return f"{_ROPE}{number}.{kind}"


def is_rope_table(name: str | None) -> bool:
    """Whether a weight is a table of rotary embeddings."""
    return (name or "").startswith(_ROPE)


MANIFEST = "manifest.json"
SPEC = "spec.yaml"
REPORT, REPORT_PAGE = "report.json", "report.html"

IMAGES = "images.json"
"""File of a bundle that takes images: an `ImageSpec`."""

ENCODER = "encoder.json"
"""File of a bundle that is an encoder: an `EncoderSpec`."""

PROFILE = "profile.json"
"""File of a bundle that was profiled: a `Profile`."""

TOKENIZER = "tokenizer"
"""Folder of the tokenizer's files."""


def graph_file(name: str) -> str:
    """The file of a graph."""
    return f"graphs/{name}.onnx"


def step_file(name: str) -> str:
    """The file of a graph's step as GPU kernels."""
    return f"steps/{name}.json"


def prompt_file(name: str) -> str:
    """The file that says how a graph reads long prompts on a GPU."""
    return f"steps/{name}-prompt.json"


def prompt_graph_file(name: str, piece: str) -> str:
    """The file of a graph that several layers of a long prompt share."""
    return f"steps/{name}-prompt-{piece}.onnx"


def verification_graph(name: str, tokens: int) -> str:
    """The graph that reads up to so many tokens of a sequence as a graph's steps would."""
    return f"{name}.verify{tokens}"


def adapted_graph(name: str) -> str:
    """The form of a graph with adapters."""
    return f"{name}.adapted"


def data_file(name: str) -> str:
    """A file of weights, beside the graphs that read it."""
    return f"graphs/{name}"


def gates_file(name: str) -> str:
    """The file of trained gates or of a router's weights."""
    return f"gates/{name}.safetensors"
