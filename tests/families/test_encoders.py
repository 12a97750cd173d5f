"""Encoders through the whole line: a folder, compiled and loaded, gives what transformers gives for each text alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from adaptc import runtime
from adaptc.errors import LoadError, SpecError
from adaptc.families.table import ENCODERS
from tests.close import ENGINE, assert_close
from tests.models import encoders

Classifier = transformers.AutoModelForSequenceClassification


def test_every_family_is_tried() -> None:
    tried = {model_type for model_type, _ in encoders.FAMILIES.values()} | {"whisper"}
    assert tried == set(ENCODERS)


@pytest.mark.parametrize("family", encoders.FAMILIES)
def test_a_folder_gives_the_mean_of_transformers_states(family: str, tmp_path: Path) -> None:
    """Padding and batches change nothing: the reference reads each text by itself."""
    _, model = encoders.write(tmp_path, family)
    with runtime.load(encoders.compiled(tmp_path).path) as session:
        assert isinstance(session, runtime.EncoderSession)
        vectors = session.embed(list(encoders.TEXTS))
        one = session.embed(encoders.TEXTS[2])
    assert vectors.dtype == np.float32
    expected = encoders.means(model, encoders.TEXTS, model.config.pad_token_id)
    assert_close(vectors, expected, **ENGINE)
    assert_close(one, expected[2], **ENGINE)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_labels_of_texts_and_of_pairs(family: str, tmp_path: Path) -> None:
    labels = {0: "no", 1: "maybe", 2: "yes"}
    _, model = encoders.write(tmp_path, family, Classifier, id2label=labels, classifier_pooling="mean")
    pairs = [("the cat sat", "a dog ran on it"), ("red", "blue " * 9)]
    with runtime.load_encoder(encoders.compiled(tmp_path).path) as session:
        found, of_pairs = session.classify(list(encoders.TEXTS)), session.classify(pairs)
    for given, result in ((encoders.TEXTS, found), (pairs, of_pairs)):
        expected = np.stack([encoders.logits_alone(model, each) for each in encoders.ids_of(given)])
        assert_close(result.logits, expected, **ENGINE)
        assert_close(result.scores, torch.from_numpy(expected).softmax(1).numpy(), **ENGINE)
        assert result.best == tuple(labels[index] for index in expected.argmax(1))


def test_a_reranker_gives_one_score(tmp_path: Path) -> None:
    """As transformers' pipeline and sentence-transformers' CrossEncoder: of one label, the sigmoid."""
    _, model = encoders.write(tmp_path, "bert", Classifier, num_labels=1)
    pair = ("the cat sat", "a dog ran on it")
    with runtime.load_encoder(encoders.compiled(tmp_path).path) as session:
        found = session.classify(pair)
    logits = encoders.logits_alone(model, encoders.ids_of([pair])[0])
    assert_close(found.scores[0], 1 / (1 + np.exp(-logits)), **ENGINE)


@pytest.mark.parametrize("kind", ["AutoModelForMaskedLM", "AutoModelForPreTraining"])
def test_heads_of_pretraining_are_left_out(kind: str, tmp_path: Path) -> None:
    """Their files have other names, and tensors that an encoder does not read."""
    _, model = encoders.write(tmp_path, "bert", getattr(transformers, kind))
    with runtime.load_encoder(encoders.compiled(tmp_path).path) as session:
        vectors = session.embed(list(encoders.TEXTS))
    assert_close(vectors, encoders.means(model.bert, encoders.TEXTS), **ENGINE)


@pytest.mark.parametrize(("weights", "most"), [("fp16", 0.002), ("int8", 0.02), ("int4", 0.4)])
def test_smaller_weights_lose_little(weights: str, most: float, tmp_path: Path) -> None:
    _, model = encoders.write(tmp_path, "modernbert")
    bundle = encoders.compiled(tmp_path, f"target.weights={weights}", "target.block_size=16")
    with runtime.load_encoder(bundle.path) as session:
        vectors = session.embed(list(encoders.TEXTS))
    expected = encoders.means(model, encoders.TEXTS)
    cosine = (vectors * expected).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
    assert 0 < 1 - cosine.min() < most


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"is_decoder": True}, "is_decoder is True, which makes another model"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is relative_key"),
        ({"architectures": ["BertForTokenClassification"]}, "architectures: BertForTokenClassification; an encoder wi"),
    ],
)
def test_other_models_are_refused(options: dict[str, Any], fault: str, tmp_path: Path) -> None:
    import json

    encoders.write(tmp_path, "bert")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | options))
    with pytest.raises((LoadError, SpecError), match=fault):
        encoders.compiled(tmp_path)


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ("target.device=cuda", "an encoder runs on a CPU"),
        ("target.kv_cache=int8", "keeps no keys and values"),
        ("passes=[skip_ffn]", "passes: skip_ffn: rewrites of decoders"),
    ],
)
def test_what_has_no_meaning_is_refused(setting: str, fault: str, tmp_path: Path) -> None:
    encoders.write(tmp_path, "bert")
    with pytest.raises(SpecError, match=fault):
        encoders.compiled(tmp_path, setting)


def test_whispers_encoder_gives_states_of_sounds(tmp_path: Path) -> None:
    _, model = encoders.write_whisper(tmp_path)
    sounds: list[Any] = [encoders.sound(0.4), encoders.sound(1.0, 1), (encoders.sound(0.7, 2) * 20000).astype(np.int16)]
    floats = [each / 32768 if each.dtype == np.int16 else each for each in sounds]
    given = encoders.extractor(model.config)(floats, sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        expected = model.get_encoder()(given).last_hidden_state.numpy()
    with runtime.load_encoder(encoders.compiled(tmp_path).path) as session:
        assert_close(session.features(sounds), given.numpy(), atol=1e-4)
        assert_close(session.encode(sounds), expected, atol=1e-3)
        assert_close(session.encode(sounds[1]), expected[1], atol=1e-3)
        wrongs: tuple[tuple[Callable[[], Any], str], ...] = (
            (lambda: session.encode(encoders.sound(1.5)), "1.5 s; at most 1 s are possible, and truncate=True cuts"),
            (lambda: session.encode(sounds[0], sampling_rate=8000), "sampling_rate: 8000; sounds of 16000 samples a"),
            (lambda: session.encode(np.zeros((2, 8, 2), np.float32)), r"float32\[8, 2\]; float\[samples\] from -1"),
            (lambda: session.encode([np.array([np.nan, 0.0])]), "not finite"),
            (lambda: session.embed("a text"), "embed: this encoder reads sounds; encode is right"),
        )
        for wrong, fault in wrongs:
            with pytest.raises(runtime.RequestError, match=fault):
                wrong()
        assert session.encode(encoders.sound(1.5), truncate=True).shape == expected[0].shape


def test_an_encoder_writes_no_text(tmp_path: Path) -> None:
    """Whoever asks for a decoder is told what the bundle is."""
    from adaptc.runtime.bundle.folder import open_bundle
    from adaptc.runtime.loading import load_decoder

    encoders.write_whisper(tmp_path)
    bundle = encoders.compiled(tmp_path)
    with pytest.raises(runtime.BundleError, match="an encoder, which writes no text"):
        load_decoder(open_bundle(bundle.path))
    with pytest.raises(runtime.RequestError, match=r"batch: has no meaning for .*writes no text"):
        runtime.load(bundle.path, batch=2)
