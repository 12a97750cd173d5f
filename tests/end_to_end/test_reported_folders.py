"""Folders of public reports of converters and engines, compiled and compared with how transformers reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from tokenizers import AddedToken

from adaptc.checks.check import check
from adaptc.cli import main
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.runtime import RequestError, load
from adaptc.spec.reading import read_spec
from tests.close import ENGINE, assert_close
from tests.models import folder
from tests.models.tiny_tokenizer import byte_level, save

IDS = [5, 40, 7, 90, 12, 33, 61, 8, 200, 14, 77, 3]


def compiled(spec: Path, *settings: str) -> Path:
    into = spec.parent / "bundle"
    compile_spec(read_spec(spec, list(settings)), spec.parent, into, Cache(spec.parent / "cache"))
    return into


def as_transformers(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path / "model", attn_implementation="eager").eval()


def test_a_tokenizer_with_a_token_past_the_embedding(tmp_path: Path) -> None:
    """Gemma 3 1B: the tokenizer has <image_soft_token>, the text model has no row for it."""
    spec, model = folder.write(tmp_path, tie_word_embeddings=False)
    words = byte_level()
    past = words.get_vocab_size()
    words.add_special_tokens([AddedToken("<image_soft_token>", normalized=False)])
    assert (words.token_to_id("<image_soft_token>"), model.config.vocab_size) == (past, past)
    save(words, tmp_path / "model")
    [found] = [each for each in check(read_spec(spec), tmp_path).findings if each.level != "ok" and each.about == "lm"]
    assert (found.level, found.text) == (
        "warn",
        f"the tokenizer's ids go to {past}, the embedding's to {past - 1}: prompts with a token past it are refused",
    )
    bundle = compiled(spec)
    with load(bundle, threads=1) as session:
        for step in (False, True):
            assert_close(session.score(IDS, step=step).values, folder.scores(model, IDS), **ENGINE)
        for prompt in ("the <image_soft_token> cat", [5, past], np.array([past])):
            with pytest.raises(RequestError, match=rf"^prompt: token .*id {past}; ids go from 0 to {past - 1}$"):
                session.generate(prompt, max_new_tokens=2)
    shown = CliRunner().invoke(main, ["generate", str(bundle), "-p", "a <image_soft_token>", "-n", "2"])
    assert shown.exit_code != 0
    assert f"id {past}; ids go from 0" in shown.output


def test_a_head_of_its_own_answers_though_the_config_says_tied(tmp_path: Path) -> None:
    spec, model = folder.write(tmp_path, tie_word_embeddings=False)
    file = tmp_path / "model" / "config.json"
    file.write_text(file.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    expected = folder.scores(as_transformers(tmp_path), IDS)
    assert_close(folder.scores(model, IDS), expected, **ENGINE)
    result = CliRunner().invoke(
        main, ["compile", str(spec), "-o", str(tmp_path / "bundle"), "--cache-dir", str(tmp_path / "cache")]
    )
    assert result.exit_code == 0, result.output
    [line] = [line for line in result.stderr.splitlines() if line.startswith("warning: models.lm:")]
    assert "the head is the embedding, and the weights hold another" in line
    with load(tmp_path / "bundle", threads=1) as session:
        assert_close(session.score(IDS).values, expected, **ENGINE)


@pytest.mark.parametrize(("weights", "most"), [("fp16", 0.02), ("int8", 0.05), ("int4", 0.5)])
def test_blocks_of_zeros_and_of_tiny_and_equal_numbers(weights: str, most: float, tmp_path: Path) -> None:
    spec, model = folder.write(tmp_path, tie_word_embeddings=False, hidden_size=64, intermediate_size=128)
    with torch.no_grad():
        model.lm_head.weight[200:] = 0
        model.model.embed_tokens.weight[200:] = 0
        first, second = model.model.layers[0].mlp, model.model.layers[1].mlp
        first.gate_proj.weight[:32], first.up_proj.weight[:, :32], first.down_proj.weight[:, 32:64] = 0, 0, 0
        second.gate_proj.weight[:16], second.up_proj.weight[:16] = 0.5, 1e-30
        second.down_proj.weight[:16] *= 1e-20
        second.up_proj.weight[16:20] = 0
        second.up_proj.weight[16:20, 3] = 3.0
        model.model.layers[1].self_attn.v_proj.weight.zero_()
    model.save_pretrained(tmp_path / "model")
    expected = folder.scores(model, IDS)
    with load(compiled(spec, f"target.weights={weights}"), threads=1) as session:
        for step in (False, True):
            found = session.score(IDS, step=step).values
            assert np.isfinite(found).all()
            assert np.abs(found - expected).mean() < most


def test_windows_in_the_upper_layers_only(tmp_path: Path) -> None:
    """Qwen2 with max_window_layers, on texts longer than the window, alone and in a batch."""
    options: dict[str, Any] = {
        "num_hidden_layers": 4,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 2,
    }
    spec, model = folder.write(tmp_path, "qwen2", **options)
    assert model.config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    with load(compiled(spec, "target.batch=2"), threads=1) as session:
        for step in (False, True):
            assert_close(session.score(IDS, step=step).values, folder.scores(model, IDS), **ENGINE)
        prompts = [IDS, IDS[:3], IDS[4:9]]
        together = [list(each.ids) for each in session.generate(prompts, max_new_tokens=10)]
    for prompt, written in zip(prompts, together, strict=True):
        assert written == folder.greedy(model, prompt, len(written))
