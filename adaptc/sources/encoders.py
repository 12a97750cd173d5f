"""How an encoder is asked, from its config, sentence-transformers' files and its processor's settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.errors import LoadError, one_line
from adaptc.families.base import EncoderFamily
from adaptc.families.encoder_model import classifies, encoder_of
from adaptc.runtime.encoding.spec import Activation, EncoderSpec, SoundSpec, TextSpec
from adaptc.sources.base import Source

_ACTIVATIONS: dict[str, Activation] = {"Identity": "none", "Sigmoid": "sigmoid", "Softmax": "softmax"}
"""What sentence-transformers may name as the activation of a model that compares two texts, by torch's class."""


def encoder_spec(source: Source, most: int) -> EncoderSpec | None:
    """Return what a bundle must know to ask an encoder; None for any other model.

    Args:
        source: The model.
        most: The largest number of tokens that it is compiled for.

    Raises:
        LoadError: the source cannot be read, or asks for what adaptc does not follow.
    """
    config = source.config()
    family = encoder_of(config)
    if family is None:
        return None
    if family.reads == "sound":
        return EncoderSpec(None, _sound(source, config), (), "none")
    labelled = classifies(config)
    sentences = source.sentences()
    text = TextSpec(
        max_tokens=min(most, longest_text(source, family)),
        vocab_size=config.vocab_size,
        pad_token_id=int(config.pad_token_id or 0),
        prompts={} if labelled else dict(sentences.prompts),
        default_prompt="" if labelled else sentences.default_prompt,
    )
    if not labelled:
        return EncoderSpec(text, None, (), "none")
    labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    return EncoderSpec(text, None, labels, _activation(source.origin, config))


def longest_text(source: Source, family: EncoderFamily) -> int:
    """Return how many tokens a text may have: as many as the model has positions, or fewer that its files state.

    Raises:
        LoadError: as in `Source.sentences`.
    """
    config = source.config()
    stated = None if classifies(config) else source.sentences().max_tokens
    return min(family.limit(config), stated or family.limit(config))


def calibration_rows(source: Source, ids: npt.NDArray[np.int64], tokens: int) -> npt.NDArray[np.int64]:
    """Cut a text into pieces with the special tokens around each that the model expects, one after another.

    Args:
        source: The model.
        ids: The text without special tokens, int64 [tokens].
        tokens: Of a piece, special ones included.

    Returns:
        int64 [pieces · tokens].
    """
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_buffer(source.tokenizer_files()["tokenizer.json"])
    tokenizer.no_padding()
    around = list(tokenizer.encode("").ids)
    before, after = around[: len(around) - len(around) // 2], around[len(around) - len(around) // 2 :]
    inner = tokens - len(around)
    pieces = [[*before, *ids[at : at + inner].tolist(), *after] for at in range(0, len(ids) - inner + 1, inner)]
    return np.array([token for piece in pieces for token in piece] or ids, np.int64)


def _activation(origin: str, config: Any) -> Activation:
    """What makes scores of logits, as transformers' pipeline and sentence-transformers' CrossEncoder have it."""
    own = getattr(config, "sentence_transformers", None)
    named = own.get("activation_fn") if isinstance(own, dict) else None
    named = named or getattr(config, "sbert_ce_default_activation_function", None)
    if named is not None:
        name = str(named).rpartition(".")[2]
        if name not in _ACTIVATIONS:
            raise LoadError(
                f"{origin}: config.json: activation {one_line(named)[:60]}; {', '.join(_ACTIVATIONS)} are followed"
            )
        return _ACTIVATIONS[name]
    if config.problem_type == "regression":
        return "none"
    return "sigmoid" if config.problem_type == "multi_label_classification" or config.num_labels == 1 else "softmax"


def _sound(source: Source, config: Any) -> SoundSpec:
    """How sounds become inputs, by the settings of the model's feature extractor."""
    settings = source.image_processor()
    kind = settings.get("feature_extractor_type", "WhisperFeatureExtractor")
    if kind != "WhisperFeatureExtractor" or settings.get("dither") or settings.get("do_normalize"):
        raise LoadError(
            f"{source.origin}: preprocessor_config.json: {kind}; WhisperFeatureExtractor without dither and "
            "do_normalize is followed"
        )
    hop, rate = settings.get("hop_length", 160), settings.get("sampling_rate", 16000)
    frames = 2 * config.max_source_positions
    spec = SoundSpec(rate, frames * hop, settings.get("n_fft", 400), hop, config.num_mel_bins)
    stated = settings.get("feature_size", spec.mels), settings.get("chunk_length", 30) * rate
    if stated != (spec.mels, spec.samples):
        raise LoadError(
            f"{source.origin}: preprocessor_config.json gives {stated[0]} bands of {stated[1]} samples; by config.json "
            f"it should be {spec.mels} of {spec.samples}"
        )
    return spec
