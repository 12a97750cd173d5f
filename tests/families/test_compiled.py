"""Families through the whole line: a folder, compiled and loaded, writes what transformers writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adaptc import runtime
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.runtime.bundle.folder import Bundle
from adaptc.spec.reading import read_spec
from adaptc.verification.rounded import put_weights, views_of, weight_faults
from adaptc.verification.stored_weights import stored_weights
from tests.close import ENGINE, assert_close
from tests.models import folder, tiny

PROMPTS = ([5, 9, 40, 7, 101, 33, 12, 60], [17], [3, 70, 22])
"""Prompts of several lengths, which share steps."""

NEW = 14
WHOLE = ("phi3-partial", "cohere-norms", "gpt2")
"""One for each kind of KV cache that Llama has not; `tests/passes/test_every_pass.py` has more families."""

JOINED = ("phi3-partial", "gpt2")
"""Those that store matrices joined, in an order of their own, or turned."""


def until_end(ids: list[int]) -> list[int]:
    """Ids up to the first that ends a text."""
    return ids[: ids.index(1) + 1] if 1 in ids else ids


def compiled(tmp_path: Path, family: str, *settings: str, again: bool = False, **more: Any) -> tuple[Bundle, Any]:
    """A bundle of a tiny model in a folder, and the model; `again` takes the stages before weights from the cache."""
    model_type, options = tiny.FAMILIES[family]
    spec, model = folder.write(tmp_path, model_type, **options | more)
    cache = Cache(tmp_path / "cache")
    bundle = compile_spec(read_spec(spec, settings), tmp_path, tmp_path / "bundle", cache).bundle
    if again:
        other = (*settings, "target.max_tokens=48")
        bundle = compile_spec(read_spec(spec, other), tmp_path, tmp_path / "again", cache).bundle
    return bundle, model


@pytest.mark.parametrize("family", WHOLE)
def test_a_folder_becomes_what_transformers_computes(family: str, tmp_path: Path) -> None:
    bundle, model = compiled(tmp_path, family, "target.batch=3", again=family in JOINED)
    with runtime.load(bundle.path) as session:
        streams = [session.generate(prompt, max_new_tokens=NEW, stream=True) for prompt in PROMPTS]
        for stream, prompt in zip(streams, PROMPTS, strict=True):
            assert "".join(stream) == stream.result.text
            assert list(stream.result.ids) == until_end(folder.greedy(model, prompt, NEW))
        scores = session.score(PROMPTS[0]).values
    assert_close(scores, folder.scores(model, PROMPTS[0]), **ENGINE)


@pytest.mark.parametrize("family", JOINED)
def test_weights_in_four_bits_are_those_of_the_source(family: str, tmp_path: Path) -> None:
    """What `verify` puts back into transformers' model: joined matrices whole again, turned ones turned back."""
    bundle, model = compiled(tmp_path, family, "target.weights=int4", "target.block_size=16")
    stored = stored_weights(bundle)
    views = views_of(model, stored)
    errors = put_weights(model, stored, views)
    assert {each.name for each in errors if each.bits == 0} == set()
    assert weight_faults(errors, "float32") == []
    assert {view.source for view in views.values()} <= {each.name for each in errors if each.bits in (4, 8, 32)}
    with runtime.load(bundle.path) as session:
        assert_close(session.score(PROMPTS[0]).values, folder.scores(model, PROMPTS[0]), atol=0.03)


def test_max_tokens_chooses_the_factors_of_longrope(tmp_path: Path) -> None:
    """Beyond what the short ones are for, long ones are used, as transformers does for a text so long."""
    rope = {**tiny.LONG, "original_max_position_embeddings": 16}
    more: dict[str, Any] = {"original_max_position_embeddings": 16, "rope_parameters": rope}
    bundle, model = compiled(tmp_path, "phi3-long", **more)
    prompt = list(range(40, 60))
    with runtime.load(bundle.path) as session:
        assert list(session.generate(prompt, max_new_tokens=NEW).ids) == until_end(folder.greedy(model, prompt, NEW))
        assert_close(session.score(prompt).values, folder.scores(model, prompt), **ENGINE)
        short = session.score(prompt[:8]).values
    assert abs(short - folder.scores(model, prompt[:8])).max() > 0.004, "whose text is short takes the short factors"


def test_max_tokens_chooses_the_frequencies_of_dynamic_ntk(tmp_path: Path) -> None:
    """A text of `max_tokens` is turned as transformers turns it, and so is every shorter one; as vLLM does."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0}
    more: dict[str, Any] = {"max_position_embeddings": 16, "rope_parameters": rope}
    bundle, model = compiled(tmp_path, "llama", "target.max_tokens=40", **more)
    text = list(range(40, 80))
    with runtime.load(bundle.path) as session:
        assert_close(session.score(text).values, folder.scores(model, text), **ENGINE)
        short = session.score(text[:12]).values
        written = session.generate(text[:12], max_new_tokens=20).ids
    with torch.no_grad():
        far = torch.tensor([[*range(39), 39]])  # it remembers the longest text until a short one comes
        model.model.rotary_emb(torch.zeros(1), far)
        assert model.model.rotary_emb.max_seq_len_cached == 40
        turned = [*model.model.rotary_emb(torch.zeros(1), far[:, :31])]
    static = {**rope, "rope_theta": 1e4 * (3.0 * 40 / 16 - 2.0) ** (16 / 14), "rope_type": "default"}
    fixed = folder.write(tmp_path / "static", "llama", max_position_embeddings=64, rope_parameters=static)[1]
    fixed.load_state_dict(model.state_dict())
    for mine, theirs in zip(fixed.model.rotary_emb(torch.zeros(1), far[:, :31]), turned, strict=True):
        assert_close(mine.numpy(), theirs.numpy(), atol=1e-5)
    assert_close(short, folder.scores(fixed, text[:12]), **ENGINE)
    assert list(written) == until_end(folder.greedy(fixed, text[:12], 20))


def test_dynamic_ntk_within_the_trained_length_is_the_model_itself(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0}
    bundle, model = compiled(tmp_path, "llama", max_position_embeddings=64, rope_parameters=rope)
    prompt = list(range(40, 60))
    with runtime.load(bundle.path) as session:
        assert list(session.generate(prompt, max_new_tokens=NEW).ids) == until_end(folder.greedy(model, prompt, NEW))
        assert_close(session.score(prompt).values, folder.scores(model, prompt), **ENGINE)
