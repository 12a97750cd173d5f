"""An encoder: its tokens, weights and numbers against what transformers makes of its source, a text at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptc.errors import LoadError
from adaptc.evaluation.reference import source_of
from adaptc.families.encoder_model import classifies, encoder_of, takes_token_types
from adaptc.families.sentences import PoolingMode, Sentences
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.names import ENCODER
from adaptc.runtime.encoding.session import EncoderSession
from adaptc.runtime.encoding.spec import read_encoder_spec
from adaptc.runtime.encoding.texts import Row
from adaptc.runtime.loading import BACKENDS, tokenizer_of
from adaptc.runtime.progress import Progress
from adaptc.sources.base import Source
from adaptc.verification.bundle_model import EXACT
from adaptc.verification.kinds.source import text_parts
from adaptc.verification.kinds.steps import Verification, is_exact, weights_part
from adaptc.verification.outside import Place, place_of, quiet, version
from adaptc.verification.part import Part, judged
from adaptc.verification.probes import texts
from adaptc.verification.rounded import put_weights, views_of
from adaptc.verification.stored_weights import stored_weights
from adaptc.verification.text import TOKENIZER

Floats = npt.NDArray[np.float32]

_PROBES = 40
_SECONDS = (0.3, 1.0)  # of a sound, as shares of the longest
_SAME = 1e-4
"""How far numbers of one run may be from another's, over the larger of 1 and the largest: sums of float32."""

_FEATURES = 1e-4
"""How far two spectrograms of one sound may be apart: transformers computes in float32, adaptc in float64."""


@dataclass(frozen=True, slots=True)
class _Reference:
    """The source as transformers runs it.

    Attributes:
        model: The encoder, with its head if it has labels.
        by: What loaded it, with its version.
        outputs: What it gives for the probes: float32 [probes, ...].
    """

    model: Any
    by: str
    outputs: Callable[[], Floats]


def verify_encoder(bundle: Bundle, base: Path, threads: int | None, progress: Progress) -> Verification:
    """Compare a bundle of an encoder with its source.

    Texts are read by transformers one at a time, without padding, and their states pooled here: what the bundle does
    with batches and masks is compared with a run that has none.

    Args:
        bundle: An opened bundle of an encoder.
        base: The folder that paths in its spec start from.
        threads: Threads of both.
        progress: Told of stages and steps.

    Raises:
        LoadError: the source is not there or has changed, transformers cannot read it, or torch is missing.
    """
    source = source_of(bundle, base)
    place = place_of(source)
    if place is None:
        raise LoadError(f"{source.origin}: transformers reads no source of this kind")
    spec = read_encoder_spec(bundle.read(ENCODER), str(bundle.path / ENCODER))
    progress.stage("source model")
    parts: list[Part] = []
    if spec.sound is not None:
        rate, most = spec.sound.sampling_rate, spec.sound.samples
        sounds = [_sound(int(share * most), rate, seed) for seed, share in enumerate(_SECONDS)]
        reference = _of_sounds(place, source, sounds, rate)

        def ours(session: EncoderSession) -> Floats:
            return session.encode(sounds, sampling_rate=rate)
    else:
        progress.stage("tokenizer")
        _, said = text_parts(bundle, source, threads)
        parts += [part for part in said if part.name == TOKENIZER]
        rows = _rows(bundle)
        reference = _of_texts(place, source, rows)

        def ours(session: EncoderSession) -> Floats:
            return session.run(rows)

    expected = reference.outputs()
    if spec.sound is not None:
        parts.append(_features_part(bundle, threads, place, sounds, rate))
    progress.stage("bundle")
    shipped, exact = (_given(bundle, threads, ours, exact=each) for each in (False, True))
    progress.stage("source model with the bundle's weights")
    stored = stored_weights(bundle)
    errors = put_weights(reference.model, stored, views_of(reference.model, stored))
    rounded = reference.outputs()
    parts += [weights_part(errors, reference.by, source.dtype)]
    by = f"{reference.by}, with the bundle's weights"
    parts += [_numbers("lowering", by, exact, rounded, judge=True), _numbers("loss", reference.by, shipped, expected)]
    return Verification(tuple(parts), {})


def _rows(bundle: Bundle) -> list[Row]:
    """Texts of many lengths as the bundle reads them; the tokens themselves are another part."""
    spec = read_encoder_spec(bundle.read(ENCODER), "").text
    tokenizer = tokenizer_of(bundle)
    assert spec is not None
    if tokenizer is None:
        return [Row(list(range(1, 2 + at)), [0] * (1 + at)) for at in range(_PROBES)]
    given = [each for each in texts(()) if each.strip()][:_PROBES]
    joined = [" ".join(given[: 1 + at % 7]) for at in range(len(given))]
    return [Row(each.ids, each.types) for each in tokenizer.encode_rows(joined, spec.max_tokens)]


def _given(bundle: Bundle, threads: int | None, ours: Callable[[EncoderSession], Floats], *, exact: bool) -> Floats:
    """What the bundle gives, as it runs or with weights multiplied as floats."""
    backend = (EXACT if exact and is_exact(bundle) else BACKENDS)[bundle.manifest.target.backend]
    spec = read_encoder_spec(bundle.read(ENCODER), str(bundle.path / ENCODER))
    with EncoderSession(backend.engine(bundle, bundle.manifest.reader, threads), spec) as session:
        return ours(session)


def _of_texts(place: Place, source: Source, rows: Sequence[Row]) -> _Reference:
    """Vectors, or logits, of texts read one at a time."""
    import torch
    import transformers

    config = source.config()
    named = "AutoModelForSequenceClassification" if classifies(config) else "AutoModel"
    with quiet():
        model = getattr(transformers, named).from_pretrained(
            place.folder, dtype=torch.float32, attn_implementation="eager"
        )
    model.eval()
    sentences, pairs = source.sentences(), takes_token_types(config)

    def outputs() -> Floats:
        found = []
        with torch.no_grad():
            for row in rows:
                given = {"input_ids": torch.tensor([row.ids])}
                if pairs:
                    given["token_type_ids"] = torch.tensor([row.types])
                result = model(**given)
                one = result.logits[0] if classifies(config) else _vector(result.last_hidden_state[0], sentences)
                found.append(one.float().numpy())
        return np.stack(found)

    return _Reference(model, f"{named} of {version()}", outputs)


def _vector(states: Any, sentences: Sentences) -> Any:
    """One vector of a text's states, float32 [tokens, width], none of which is padding."""
    import torch

    ranks = torch.arange(1, len(states) + 1, dtype=states.dtype)
    of: dict[PoolingMode, Callable[[], Any]] = {
        "cls": lambda: states[0],
        "max": lambda: states.amax(0),
        "mean": lambda: states.mean(0),
        "mean_sqrt_len_tokens": lambda: states.sum(0) / len(states) ** 0.5,
        "weightedmean": lambda: (states * ranks[:, None]).sum(0) / ranks.sum(),
        "lasttoken": lambda: states[-1],
    }
    whole = torch.cat([of[mode]() for mode in sentences.pooling])
    return whole / whole.norm() if sentences.normalize else whole


def _of_sounds(place: Place, source: Source, sounds: Sequence[Floats], rate: int) -> _Reference:
    """States of sounds, whose features transformers' extractor makes."""
    import torch
    import transformers

    family = encoder_of(source.config())
    assert family is not None
    with quiet():
        whole = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(
            place.folder, dtype=torch.float32, attn_implementation="eager"
        )
        features = _extracted(place, sounds, rate)
    model: Any = whole.eval().get_submodule(family.part)

    def outputs() -> Floats:
        with torch.no_grad():
            found: Floats = model(torch.from_numpy(features)).last_hidden_state.numpy()
        return found

    return _Reference(model, f"{type(whole).__name__} of {version()}", outputs)


def _extracted(place: Place, sounds: Sequence[Floats], rate: int) -> Floats:
    import transformers

    extractor = transformers.AutoFeatureExtractor.from_pretrained(place.folder)
    given = extractor(list(sounds), sampling_rate=rate, return_tensors="np")
    found: Floats = given.input_features.astype(np.float32)
    return found


def _features_part(bundle: Bundle, threads: int | None, place: Place, sounds: Sequence[Floats], rate: int) -> Part:
    """Compare the runtime's spectrograms with transformers'."""
    with quiet():
        expected = _extracted(place, sounds, rate)
    found = _given(bundle, threads, lambda session: session.features(sounds, sampling_rate=rate), exact=False)
    error = float(np.abs(found - expected).max())
    faults = [f"a number is off by {error:.2g}, at most {_FEATURES:.2g} may be"] if not error <= _FEATURES else []
    return judged("features", f"AutoFeatureExtractor of {version()}", faults, {"max_error": error})


def _sound(samples: int, rate: int, seed: int) -> Floats:
    """Tones in noise, float32 [samples]."""
    time = np.arange(samples) / rate
    noise = np.random.default_rng(seed).normal(0, 0.05, samples)
    return (0.4 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 3000 * time) + noise).astype(np.float32)


def _numbers(name: str, by: str, found: Floats, expected: Floats, *, judge: bool = False) -> Part:
    """Compare outputs; judged if they are to be the same, as the loss of smaller weights is not."""
    error, size = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    most = _SAME * max(1.0, size)
    flat = [each.reshape(-1, each.shape[-1]).astype(np.float64) for each in (found, expected)]
    norms = [np.linalg.norm(each, axis=1) for each in flat]
    cosine = (flat[0] * flat[1]).sum(1) / np.maximum(norms[0] * norms[1], 1e-30)
    faults = [f"a number is off by {error:.2g}, at most {most:.2g} may be"] if judge and not error <= most else []
    figures = {
        "max_error": error,
        "largest": size,
        "mean_cosine": float(cosine.mean()),
        "least_cosine": float(cosine.min()),
    }
    return judged(name, by, faults, figures)
