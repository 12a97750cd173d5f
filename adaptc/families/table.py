"""The table of families: adaptc's own, and those that installed packages offer.

A package offers a family as an entry point of the group `adaptc.families`: transformers' `model_type` as its name, a
`DecoderFamily`, `MultimodalFamily` or `EncoderFamily` as its value. It is loaded only for a model that no family of
adaptc's own takes.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from itertools import chain
from types import MappingProxyType

from adaptc.errors import LoadError
from adaptc.families.base import DecoderFamily, EncoderFamily, Family, MultimodalFamily
from adaptc.families.decoders.gemma import GEMMA
from adaptc.families.decoders.gemma2 import GEMMA2
from adaptc.families.decoders.gemma3_text import GEMMA3_TEXT
from adaptc.families.decoders.granite import GRANITE
from adaptc.families.decoders.llama import LLAMA
from adaptc.families.decoders.mistral import MISTRAL
from adaptc.families.decoders.olmo2 import OLMO2
from adaptc.families.decoders.phi3 import PHI3
from adaptc.families.decoders.qwen2 import QWEN2
from adaptc.families.decoders.qwen3 import QWEN3
from adaptc.families.decoders.smollm3 import SMOLLM3
from adaptc.families.encoders.bert import BERT
from adaptc.families.encoders.modernbert import MODERNBERT
from adaptc.families.encoders.roberta import ROBERTA
from adaptc.families.encoders.whisper import WHISPER
from adaptc.families.encoders.xlm_roberta import XLM_ROBERTA
from adaptc.families.experts.granitemoe import GRANITEMOE
from adaptc.families.experts.llama4_text import LLAMA4_TEXT
from adaptc.families.experts.mixtral import MIXTRAL
from adaptc.families.experts.olmoe import OLMOE
from adaptc.families.experts.qwen2_moe import QWEN2_MOE
from adaptc.families.experts.qwen3_moe import QWEN3_MOE
from adaptc.families.layer_norms.cohere import COHERE
from adaptc.families.layer_norms.cohere2 import COHERE2
from adaptc.families.layer_norms.falcon import FALCON
from adaptc.families.layer_norms.gpt2 import GPT2
from adaptc.families.layer_norms.gpt_neox import GPT_NEOX
from adaptc.families.layer_norms.stablelm import STABLELM
from adaptc.families.multimodal.gemma3 import GEMMA3
from adaptc.families.multimodal.idefics3 import IDEFICS3
from adaptc.families.multimodal.llava import LLAVA
from adaptc.families.multimodal.qwen2_5_vl import QWEN2_5_VL
from adaptc.families.multimodal.qwen2_vl import QWEN2_VL
from adaptc.families.multimodal.smolvlm import SMOLVLM

GROUP = "adaptc.families"
"""The entry points by which packages offer families."""

_GATED = (LLAMA, QWEN2, QWEN3, MISTRAL, GEMMA, GEMMA2, GEMMA3_TEXT, PHI3, OLMO2, GRANITE, SMOLLM3, STABLELM)
_OTHERS = (COHERE, COHERE2, GPT2, GPT_NEOX, FALCON)
_WITH_EXPERTS = (MIXTRAL, QWEN2_MOE, QWEN3_MOE, GRANITEMOE, OLMOE, LLAMA4_TEXT)

DECODERS: Mapping[str, DecoderFamily] = MappingProxyType(
    {each.model_type: each for each in (*_GATED, *_OTHERS, *_WITH_EXPERTS)}
)
"""adaptc's own families of decoders, by transformers' `model_type`."""

MULTIMODAL: Mapping[str, MultimodalFamily] = MappingProxyType(
    {each.model_type: each for each in (LLAVA, IDEFICS3, SMOLVLM, QWEN2_VL, QWEN2_5_VL, GEMMA3)}
)
"""adaptc's own families of multimodal language models, by transformers' `model_type`."""

ENCODERS: Mapping[str, EncoderFamily] = MappingProxyType(
    {each.model_type: each for each in (BERT, ROBERTA, XLM_ROBERTA, MODERNBERT, WHISPER)}
)
"""adaptc's own families of encoders, by transformers' `model_type`."""

FAMILIES: Mapping[str, Family] = MappingProxyType({**DECODERS, **MULTIMODAL, **ENCODERS})
"""All of adaptc's own families, by transformers' `model_type`."""


def family_of(model_type: object) -> Family | None:
    """Return the family of this `model_type`: adaptc's, else an installed package's; None if nobody knows it.

    Raises:
        LoadError: a package offers it, and it cannot be loaded or is no family of this name.
    """
    if not isinstance(model_type, str):
        return None
    return FAMILIES.get(model_type) or next(iter(_offered(model_type)), None)


def gguf_family(architecture: str, *, experts: bool = False) -> DecoderFamily | None:
    """Return the decoder family whose GGUF files state this `general.architecture`; None if nobody knows it.

    Args:
        architecture: What the file states.
        experts: Whether it states a number of experts: Mixtral's files state Llama's architecture.

    Raises:
        LoadError: as in `family_of`.
    """
    for family in chain(DECODERS.values(), _offered()):  # packages are looked for only if none of ours is right
        layout = family.gguf if isinstance(family, DecoderFamily) else None
        if layout is not None and layout.architecture == architecture and bool(layout.experts) == experts:
            return family  # type: ignore[return-value]
    return None


def supported() -> tuple[str, ...]:
    """Return the `model_type` of every family, adaptc's own first."""
    return (*FAMILIES, *sorted(importlib.metadata.entry_points(group=GROUP).names - FAMILIES.keys()))


def decoders_within() -> tuple[str, ...]:
    """Return the `model_type` of every family of decoders that a multimodal model may have, adaptc's own first.

    Raises:
        LoadError: as in `family_of`.
    """
    families = (*DECODERS.values(), *_offered())
    return tuple(each.model_type for each in families if isinstance(each, DecoderFamily) and not each.alone)


def supported_gguf() -> tuple[str, ...]:
    """Return the `general.architecture` of every family that is read from GGUF files, adaptc's own first.

    Raises:
        LoadError: as in `family_of`.
    """
    families = (*DECODERS.values(), *_offered())
    layouts = [each.gguf for each in families if isinstance(each, DecoderFamily) and each.gguf]
    return tuple(dict.fromkeys(layout.architecture for layout in layouts))


def _offered(model_type: str | None = None) -> Iterable[Family]:
    """The families that packages offer (under one name), without those that adaptc has itself."""
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name in FAMILIES or model_type not in (None, point.name):
            continue
        try:
            family = point.load()
        except (ImportError, AttributeError) as error:
            raise LoadError(f"family {point.name!r} of package {point.value} cannot be loaded: {error}") from error
        if not isinstance(family, DecoderFamily | MultimodalFamily | EncoderFamily) or family.model_type != point.name:
            raise LoadError(
                f"family {point.name!r} of package {point.value}: {family!r}; a DecoderFamily, MultimodalFamily or "
                f"EncoderFamily whose model_type is {point.name!r} is right"
            )
        yield family
