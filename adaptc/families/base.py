"""What a file of a model family states: values only, read by sources, capture and checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Array = npt.NDArray[np.float32]


class GgufHeader(Protocol):
    """What a family may ask of a GGUF file: its metadata, and which tensors it has."""

    @property
    def path(self) -> Path:
        """The file, for messages."""

    @property
    def tensors(self) -> Mapping[str, Any]:
        """The tensors' places by GGUF name."""

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """Return a metadata value of type `kind`, or `default` if the file has none."""

    def need(self, key: str, kind: type) -> Any:
        """Return a metadata value that must be there."""


def attention_bias(file: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    """A family whose config is what every GGUF file states, and whether attention's projections have biases."""
    return {"attention_bias": any(name.endswith(".bias") and ".attn_" in name for name in file.tensors)}


def as_stored(name: str, values: Array, heads: int, kv_heads: int) -> Array:
    """A family whose GGUF files hold the weights as transformers does."""
    return values


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """How GGUF files hold a family of decoders, where it differs from transformers.

    Attributes:
        architecture: The file's `general.architecture`.
        layer_names: Within a layer, transformers' module path by GGUF name: `{"attn_q": "self_attn.q_proj"}`. A path
            that ends in `.*` is a list of modules, one for each row of the tensor.
        config: Takes the header and the config values that every family has, and returns those to add or replace.
        weight: Takes a tensor's GGUF name, its values (float32, of the parameter's shape), the number of query heads
            and the number of key and value heads; returns the values as transformers has them.
        keys: Metadata keys, without the architecture's name, that `config` reads.
        rope_factors: Whether a tensor `rope_freqs.weight` states Llama 3's RoPE.
        experts: Within a layer, names of the tensors [experts, rows, columns] that make up one of transformers'
            parameters, one below the other, by its path; empty for a family without experts. Files of one architecture
            may be of two families, one with experts.
        long_rope: Whether tensors `rope_factors_long.weight` and `rope_factors_short.weight` state LongRoPE.
        partial_rotary: Whether RoPE may turn a part of each head, `rope.dimension_count` numbers of it.
        epsilon: What the config calls the epsilon of norms; files state that of layer norms by a key of its own.
        turned: Names within a layer of the matrices that transformers has as [inputs, outputs].
        renamed: Takes the header and returns names within a layer that depend on the file, in the form of
            `layer_names`.
    """

    architecture: str
    layer_names: Mapping[str, str]
    config: Callable[[GgufHeader, Mapping[str, Any]], dict[str, Any]] = attention_bias
    weight: Callable[[str, Array, int, int], Array] = as_stored
    keys: frozenset[str] = frozenset()
    rope_factors: bool = False
    experts: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    long_rope: bool = False
    partial_rotary: bool = False
    epsilon: str = "rms_norm_eps"
    turned: frozenset[str] = frozenset()
    renamed: Callable[[GgufHeader], Mapping[str, str]] | None = None


@dataclass(frozen=True, slots=True)
class ModuleNames:
    """What transformers' model of a family calls its parts.

    Attributes:
        decoder: Module path of the decoder, which holds all parts but the head.
        layers: Its list of layers, `layers` or `h`: `ir/marks.py` finds layers by these.
        table: Its embedding of tokens.
        norm: Its last norm.
        head: Module path of the head.
        positions: Its embedding of positions, in a family that learns one.
    """

    decoder: str = "model"
    layers: str = "layers"
    table: str = "embed_tokens"
    norm: str = "norm"
    head: str = "lm_head"
    positions: str = ""


@dataclass(frozen=True, slots=True)
class DecoderFamily:
    """A family of decoders that adaptc captures.

    Attributes:
        model_type: Its name in transformers.
        gguf: How GGUF files hold it; None where adaptc reads it from Hugging Face folders only.
        names: What transformers' model calls its parts.
        keys: Fields of its config class that other families do not have, and that its capture follows.
        accepted: Its config's keys that make another model unless they have this value.
        prepare: Makes transformers' model ready for export, in place; None where it is as it comes.
        own_attention: Whether its attention is code of its own, that takes no other function; `prepare` replaces it.
        alone: Whether adaptc takes it by itself only, and not as the language model of a multimodal one.
        kv_heads: How many heads of keys and values a config asks for; None where `num_key_value_heads` says it, or
            there are as many as heads of queries.
    """

    model_type: str
    gguf: GgufLayout | None = None
    names: ModuleNames = ModuleNames()
    keys: frozenset[str] = frozenset()
    accepted: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], None] | None = None
    own_attention: bool = False
    alone: bool = False
    kv_heads: Callable[[Any], int] | None = None


def most_positions(config: Any) -> int:
    """The positions that a config states; a family whose texts may have so many tokens."""
    return int(config.max_position_embeddings)


@dataclass(frozen=True, slots=True)
class MultimodalFamily:
    """A family of multimodal language models: image features take the places of image tokens before a decoder.

    Attributes:
        model_type: Its name in transformers.
        decoder: Module path of the decoder in transformers' model.
        encode: Takes transformers' inner model, pixels (float32) and patch positions (int64, or None), and returns
            features, float32 [images, tokens, width]. Where images are of any size, pixels are [patches, numbers],
            positions [patches, 2] and features [places, width]. A windowed one takes windows too, int64 [windows,
            places of a window], which has -1 where an image's edge cuts a window off.
        encoders: The `model_type`s that its image encoder may have; empty for a family with its own encoder.
        decoders: The `model_type`s that its decoder may have; empty for those that adaptc captures alone.
        around: Tokens that its processor writes before and after an image's, where the tokenizer has them.
        mark: The token that stands for an image in a text, in a family where that is not the image token.
        written: What its processor makes of that token, with {} in the place of image tokens.
        any_size: Whether it takes one image of any size, cut into patches, instead of square ones of one size.
        window: Takes the encoder's config, and returns how many of an image's places are the side of a window that some
            of its layers see; None where all see it whole.
        resample: By which of Pillow's filters its processor resizes images, where its settings do not say.
        whole: Whether an image's places attend to all of that image, and not only to those before them.
        encoder_depth: The field of the image encoder's config that holds its number of layers.
        patch_positions: Returns the positions of a square image's patches, a constant of the graph, given
            transformers' inner model; None where `encode` needs no constant.
        prepare: Makes transformers' inner model ready for export, in place; None where it is as it comes.
        fault: Says which value of a config makes no model of the family, and what would be right; empty for none.
    """

    model_type: str
    decoder: str
    encode: Callable[..., torch.Tensor]
    encoders: tuple[str, ...] = ()
    decoders: tuple[str, ...] = ()
    around: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    mark: str = ""
    written: str = ""
    any_size: bool = False
    window: Callable[[Any], int] | None = None
    resample: int = 3
    whole: bool = False
    encoder_depth: str = "num_hidden_layers"
    patch_positions: Callable[[Any], torch.Tensor] | None = None
    prepare: Callable[[Any], None] | None = None
    fault: Callable[[Any], str] | None = None


@dataclass(frozen=True, slots=True)
class EncoderFamily:
    """A family of encoders: they read a whole text, or a sound, at once and write nothing.

    Attributes:
        model_type: Its name in transformers.
        layers: Module path of its list of layers, in transformers' model without a head.
        reads: What its inputs are.
        limit: How many tokens a text may have, special ones included, given the config; of sounds, how many positions
            the states have.
        positions: Takes the config and token ids (int64 [batch, tokens]) and returns the positions, int64
            [batch or 1, tokens]; None for a family of sounds.
        token_types: Whether its texts may come in pairs, which an input tells apart.
        pooler: Whether transformers' model ends in a pooling layer, which embeddings do not read.
        part: Path of the encoder in transformers' model; empty where the whole model is one.
        depth: The field of the config that holds its number of layers.
        keys: Fields of its config class that other families do not have, and that its capture follows.
        accepted: Its config's keys that make another model unless they have this value.
    """

    model_type: str
    layers: str
    reads: Literal["text", "sound"] = "text"
    limit: Callable[[Any], int] = most_positions
    positions: Callable[[Any, torch.Tensor], torch.Tensor] | None = None
    token_types: bool = False
    pooler: bool = False
    part: str = ""
    depth: str = "num_hidden_layers"
    keys: frozenset[str] = frozenset()
    accepted: Mapping[str, Any] = field(default_factory=dict)


Family = DecoderFamily | MultimodalFamily | EncoderFamily
