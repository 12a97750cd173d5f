"""An encoder as transformers builds it from its config: its head, its parameters' names, what its texts may be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from adaptc.errors import LoadError, foreign
from adaptc.families.base import EncoderFamily
from adaptc.families.table import family_of

_CLASSIFIER = "ForSequenceClassification"
_WITHOUT_HEAD = ("Model", "ForMaskedLM", "ForPreTraining", "ForConditionalGeneration")
"""Ends of the classes of transformers whose encoder is taken, and whose head is not."""


def encoder_of(config: Any) -> EncoderFamily | None:
    """Return the family of an encoder; None for any other model."""
    family = family_of(config.model_type)
    return family if isinstance(family, EncoderFamily) else None


def classifies(config: Any) -> bool:
    """Return whether an encoder has a head that gives a text labels."""
    return any(name.endswith(_CLASSIFIER) for name in config.architectures or ())


def takes_token_types(config: Any) -> bool:
    """Return whether an input tells the two texts of a pair apart."""
    family = encoder_of(config)
    return family is not None and family.token_types and config.type_vocab_size > 1


def refuse_head(origin: str, config: Any) -> None:
    """Refuse a model with a head that is neither left out nor taken.

    Raises:
        LoadError: it has one.
    """
    for name in config.architectures or ():
        if not name.endswith((*_WITHOUT_HEAD, _CLASSIFIER)):
            raise LoadError(
                f"{origin}: config.json: architectures: {name}; an encoder without a head (…Model), or one with labels "
                f"for a text (…{_CLASSIFIER}), is right"
            )
    if classifies(config) and (family := encoder_of(config)) is not None and family.reads != "text":
        raise LoadError(f"{origin}: {config.model_type} with {_CLASSIFIER}; the encoder without its head is right")


def encoder_model(config: Any, **options: Any) -> Any:
    """Build the encoder of a config; `options` are those of transformers' `from_config`.

    Raises:
        LoadError: transformers cannot build it: a value of the config is out of range.
    """
    from transformers import AutoModel, AutoModelForSequenceClassification

    family = encoder_of(config)
    assert family is not None, "asked of encoders alone"
    with foreign(f"{config.model_type}: transformers cannot build a model of this config"):
        if classifies(config):
            return AutoModelForSequenceClassification.from_config(config, **options)
        if family.part:
            return _part_of(family, config, **options)
        return AutoModel.from_config(config, **options, **({"add_pooling_layer": False} if family.pooler else {}))


def _part_of(family: EncoderFamily, config: Any, **options: Any) -> Any:
    """The encoder alone of a model that has more."""
    from transformers import AutoModelForSpeechSeq2Seq

    whole = AutoModelForSpeechSeq2Seq.from_config(config, **options)
    return whole.get_submodule(family.part)


def part_names(family: EncoderFamily, names: Iterable[str]) -> dict[str, str]:
    """Return the encoder's own name of each tensor of a file of the whole model; others keep theirs."""
    last = f"{family.part.rpartition('.')[2]}."
    stems = (f"{family.part}.", last)
    found = {}
    for name in names:
        stem = next((each for each in stems if name.startswith(each)), None)
        found[name] = name if stem is None else name.removeprefix(stem)
    return found
