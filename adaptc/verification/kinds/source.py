"""The source of a bundle as others read it: its tokenizer and template, and its model in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from adaptc.errors import LoadError
from adaptc.evaluation.reference import load_eager
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.loading import tokenizer_of
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.sources.adapters.source import AdaptedSource
from adaptc.sources.base import Source
from adaptc.sources.gguf.source import GgufSource
from adaptc.verification.adapters import merged, peft_version
from adaptc.verification.llama_cpp import ABSENT, LlamaCpp, installed
from adaptc.verification.outside import Place, auto_tokenizer, load_model, place_of, version
from adaptc.verification.parity import NEW_TOKENS
from adaptc.verification.part import Part, judged, not_compared
from adaptc.verification.probes import texts
from adaptc.verification.text import TEMPLATE, TOKENIZER, AutoText, ids_part, template_part

OWN_LOADER = "adaptc's own loader"
ENDS = "ends of answers"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A source model in memory.

    Attributes:
        model: As transformers builds it.
        by: What loaded it, with its version.
        parts: What others say of it, and what stays uncompared.
    """

    model: Any
    by: str
    parts: tuple[Part, ...] = ()


def text_parts(bundle: Bundle, source: Source, threads: int | None) -> tuple[Any, list[Part]]:
    """Compare tokenizer and chat template, and the end of answers that a GGUF file names.

    Args:
        bundle: An opened bundle.
        source: Whose tokenizer it has.
        threads: Threads of llama.cpp.

    Returns:
        The reference's tokenizer, None if there is none, and the parts.
    """
    ours, place = tokenizer_of(bundle), place_of(source)
    if ours is None:
        return None, [not_compared(name, "the bundle has no tokenizer") for name in (TOKENIZER, TEMPLATE)]
    theirs, why = None, "transformers reads no tokenizer of this kind of source"
    if place is not None:
        try:
            theirs = AutoText(auto_tokenizer(place), version())
        except LoadError as error:
            why = str(error)
    template = not_compared(TEMPLATE, why) if theirs is None else template_part(ours, theirs)
    if place is not None and place.gguf is not None:
        # What transformers makes of a GGUF tokenizer is no reference, but its ids serve as texts.
        ids, ends = _gguf_text(bundle, ours, place, theirs, threads)
        return None, [ids, template, ends]
    if theirs is None:
        return None, [not_compared(TOKENIZER, why), template]
    probes = list(texts(theirs.special))
    part = ids_part(ours, theirs.name, probes, theirs.ids(probes, special=True), theirs.ids(probes, special=False))
    return theirs.tokenizer, [part, template]


def _gguf_text(
    bundle: Bundle, ours: Tokenizer, place: Place, theirs: AutoText | None, threads: int | None
) -> tuple[Part, Part]:
    """Compare ids and the end of answers with llama.cpp's.

    Where it is not there, ids are compared with transformers', which proves nothing if they differ.
    """
    probes = list(texts(() if theirs is None else theirs.special))
    if installed() is not None:
        try:
            text = LlamaCpp(place.folder / str(place.gguf), threads).text(probes)
        except LoadError as error:
            return not_compared(TOKENIZER, str(error)), not_compared(ENDS, str(error))
        ids = ids_part(ours, text.name, probes, text.special, text.plain)
        return ids, _ends(bundle, text.name, set() if text.end is None else {text.end})
    ends = not_compared(ENDS, ABSENT)
    if theirs is None:
        return not_compared(TOKENIZER, ABSENT), ends
    expected = theirs.ids(probes, special=True), theirs.ids(probes, special=False)
    part = ids_part(ours, f"{theirs.name}, as {ABSENT}", probes, *expected)
    why = f"{ABSENT}; transformers, which reads few GGUF tokenizers rightly, gives other ids"
    return (part if part.verdict == "passed" else replace(part, verdict="not compared", why=(why,))), ends


def ends_parts(bundle: Bundle, source: Source, loaded: Loaded) -> list[Part]:
    """Compare the tokens that end an answer; of a GGUF file `text_parts` does."""
    if isinstance(source.local(), GgufSource):
        return []
    if loaded.by == OWN_LOADER:
        return [not_compared(ENDS, "transformers reads no generation config of this source")]
    ends = getattr(loaded.model.generation_config, "eos_token_id", None)
    theirs = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
    return [_ends(bundle, f"GenerationConfig of {version()}", theirs)]


def _ends(bundle: Bundle, reference: str, theirs: set[int]) -> Part:
    """Compare the tokens that end an answer; a bundle may have more, which its tokenizer names."""
    spec = bundle.manifest.graphs[bundle.manifest.reader].decoder
    ours = set() if spec is None else set(spec.eos_token_ids)
    faults = [f"token {token} ends the source's answers, and not the bundle's" for token in sorted(theirs - ours)]
    return judged(ENDS, reference, faults, {"source": sorted(theirs), "bundle": sorted(ours)})


def load_source(source: Source, prompts: Sequence[Sequence[int]], threads: int | None) -> Loaded:
    """The source model by transformers; by adaptc's own loader where transformers cannot read it.

    A GGUF file is compared with llama.cpp where that is installed. What transformers makes of the file is taken only if
    llama.cpp does not say that adaptc's loader is right and transformers is not.

    Args:
        source: The model.
        prompts: What llama.cpp continues.
        threads: Threads of llama.cpp.

    Raises:
        LoadError: nobody can read it.
    """
    local = source.local()
    if isinstance(local, AdaptedSource):
        return _adapted(local)
    place = place_of(source)
    loaded, why = None, "transformers reads no source of this kind"
    method = None if isinstance(source, GgufSource) else source.quantization()
    if method is not None:
        why = f"its weights are quantized by {method}, which transformers runs with packages of others"
    elif place is not None:
        try:
            model, kind = load_model(place)
            loaded = Loaded(model, f"{kind} of {version()}")
        except LoadError as error:
            why = str(error)
    if place is None or place.gguf is None:
        own = not_compared("source model", why)
        return loaded or Loaded(load_eager(source, "float32"), OWN_LOADER, (own,))
    if installed() is None:
        reason = ABSENT if loaded is not None else f"{why}; {ABSENT}"
        loaded = loaded or Loaded(load_eager(source, "float32"), OWN_LOADER)
        return replace(loaded, parts=(not_compared("source model", reason),))
    return _confirmed(source, place, loaded, prompts, threads)


def _adapted(source: AdaptedSource) -> Loaded:
    """A model with adapters: transformers reads the base, and PEFT merges the adapters into it."""
    place = place_of(source.base)
    if place is None or place.gguf is not None:
        why = "peft merges adapters into what transformers reads from a folder"
    elif source.base.config().tie_word_embeddings != source.config().tie_word_embeddings:
        why = "peft merges a tied embedding into the head too, which its adapters leave alone"
    else:
        try:
            model, kind = load_model(place)
            return Loaded(merged(model, source.adapters), f"{kind} of {version()} and {peft_version()}")
        except LoadError as error:
            why = str(error)
    return Loaded(load_eager(source, "float32"), OWN_LOADER, (not_compared("source model", why),))


def _confirmed(
    source: Source, place: Place, loaded: Loaded | None, prompts: Sequence[Sequence[int]], threads: int | None
) -> Loaded:
    """A reading of a GGUF file that llama.cpp confirms: transformers', else adaptc's own."""
    llama = LlamaCpp(place.folder / str(place.gguf), threads)

    def said(of: Loaded) -> Part:
        try:
            return llama.model_part("source model", of.model, prompts, NEW_TOKENS)
        except LoadError as error:
            return not_compared("source model", str(error))

    if loaded is not None:
        part = said(loaded)
        if part.verdict != "failed":
            return replace(loaded, parts=(part,))
    own = Loaded(load_eager(source, "float32"), OWN_LOADER)
    return replace(own, parts=(said(own),))
