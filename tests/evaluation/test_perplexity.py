from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc.cli import main
from adaptc.compiler.cache import Cache
from adaptc.errors import AdaptcError, RequestError
from adaptc.evaluation import perplexity as evaluate
from adaptc.evaluation.perplexity import Perplexity, perplexity
from adaptc.evaluation.text import Ids, text_ids
from adaptc.runtime import Bundle
from adaptc.sources.base import Source
from tests.fakes.progress import Told
from tests.models import attention_bundle

LM = attention_bundle.LM
TEXT = "the cat sat on the mat; naïve café, the family 👍🏽 sat on the cat " * 12


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return attention_bundle.write(tmp_path_factory.mktemp("eval") / "bundle")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["eval", *map(str, arguments)], prog_name="adaptc")


def uniform(ids: Ids) -> npt.NDArray[np.float32]:
    return np.full(len(ids) - 1, -math.log(50), np.float32)


def test_a_model_that_knows_nothing_has_the_size_of_its_vocabulary() -> None:
    found = perplexity(uniform, np.arange(1000), window=64)
    assert found.perplexity == pytest.approx(50, rel=1e-6)


@settings(deadline=None, derandomize=True)
@given(st.integers(2, 300), st.integers(2, 50))
def test_every_token_but_the_first_of_a_window_counts_once(tokens: int, window: int) -> None:
    seen: list[int] = []

    def score(ids: Ids) -> npt.NDArray[np.float32]:
        assert 2 <= len(ids) <= window
        seen.extend(ids[1:].tolist())
        return -np.log1p(ids[1:]).astype(np.float32)

    found = perplexity(score, np.arange(tokens), window)
    assert seen == [i for i in range(tokens) if i % window]
    assert found.tokens == len(seen)
    assert math.log(found.perplexity) == pytest.approx(np.log1p(seen).mean(), rel=1e-5)


def test_windows_weigh_by_their_tokens() -> None:
    def score(ids: Ids) -> npt.NDArray[np.float32]:
        return np.full(len(ids) - 1, -1 if ids[0] == 0 else -4, np.float32)

    assert math.log(perplexity(score, np.arange(12), window=10).perplexity) == pytest.approx((9 * 1 + 1 * 4) / 10)


def test_progress_reaches_the_end() -> None:
    told = Told()
    perplexity(uniform, np.arange(25), 10, told)
    assert told.steps_of("") == [(0, 25), (10, 25), (20, 25), (25, 25)]


@pytest.mark.parametrize(
    ("tokens", "window", "said"), [(1, 512, "text: 1 tokens"), (0, 512, "text: 0"), (9, 1, "window: 1")]
)
def test_refuses_what_is_too_short(tokens: int, window: int, said: str) -> None:
    with pytest.raises(RequestError, match=f"{said}.*at least 2"):
        perplexity(uniform, np.arange(tokens), window)


@pytest.mark.parametrize("value", [math.nan, -math.inf, 0.5])
def test_broken_numbers_are_an_error(value: float) -> None:
    with pytest.raises(AdaptcError, match="the model's numbers are broken"):
        perplexity(lambda ids: np.full(len(ids) - 1, value, np.float32), np.arange(5))


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot read: No such file"), (b"caf\xe9 au lait", "byte 3 is not UTF-8"), (b" \n", "empty")],
)
def test_a_text_that_cannot_be_read_is_one_line(
    bundle: Bundle, tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    shown = run(bundle.path, "--text", path, "--no-dense")
    assert shown.exit_code == 1
    assert shown.stderr.startswith(f"Error: {path}: {said}")
    assert len(shown.stderr.splitlines()) == 1
    assert shown.stdout == ""


def test_a_text_of_one_token_is_too_short(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("t")
    shown = run(bundle.path, "--text", path, "--no-dense")
    assert (shown.exit_code, shown.stderr) == (
        1,
        f"Error: {path}: 1 tokens; at least 2 are needed, one to predict the next\n",
    )


def test_a_window_larger_than_the_bundle_is_refused(bundle: Bundle, text: Path) -> None:
    shown = run(bundle.path, "--text", text, "--window", 97, "--no-dense")
    assert shown.exit_code == 1
    assert shown.stderr == "Error: window: 97 tokens; this bundle holds 96: choose fewer\n"


@pytest.mark.parametrize("step", [False, True])
def test_a_bundle_has_its_models_perplexity(bundle: Bundle, text: Path, step: bool) -> None:
    ids = text_ids(bundle, text, 200)
    assert len(ids) == 200
    found = evaluate.bundle_perplexity(bundle, ids, 48, step=step, threads=1)
    total = 0.0
    for start in range(0, 200, 48):
        piece = ids[start : start + 48]
        logits = LM.logits(piece)[:-1].astype(np.float64)
        chosen = logits[np.arange(len(logits)), piece[1:]]
        total += float((np.log(np.exp(logits).sum(1)) - chosen).sum())
    assert found.tokens == 195
    assert found.perplexity == pytest.approx(math.exp(total / 195), rel=1e-4)


def test_the_command_prints_json(bundle: Bundle, text: Path) -> None:
    shown = run(bundle.path, "--text", text, "--tokens", 100, "--window", 32, "--no-dense", "--json", "--threads", 1)
    assert shown.exit_code == 0, shown.stderr
    result = json.loads(shown.stdout)
    assert result.pop("perplexity") > 1
    assert result == {
        "dense_perplexity": None,
        "ratio": None,
        "tokens": 96,
        "ffn_skipped": 0.0,
        "bytes_not_read": 0.0,
        "bytes_per_token": 1234,
        "window": 32,
        "step": False,
        "dense_dtype": None,
    }


def test_a_budget_without_gates_is_refused(bundle: Bundle, text: Path) -> None:
    arguments = (bundle.path, "--text", text, "--window", 32, "--no-dense", "--json", "--threads", 1)
    refused = run(*arguments, "--budget", 0.5)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "has neither gates nor a router and always runs whole; leave it out" in refused.stderr
    assert run(*arguments, "--budget", 1.5).exit_code == 2


def test_a_bundle_without_a_tokenizer_is_refused(tmp_path: Path, text: Path) -> None:
    attention_bundle.write(tmp_path / "bundle", tokenizer=False)
    shown = run(tmp_path / "bundle", "--text", text)
    assert shown.exit_code == 1
    assert shown.stderr == f"Error: {tmp_path / 'bundle'}: no tokenizer; a text cannot be predicted\n"


def test_dense_perplexity_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []

    class Uniform:
        def __init__(self, *arguments: object) -> None:
            made.append(arguments)

        log_probabilities = staticmethod(uniform)

    monkeypatch.setattr("adaptc.evaluation.perplexity.Reference", Uniform)
    cache, ids = Cache(tmp_path), np.arange(40)

    def measured(sha256: str = "a", of: Ids = ids, window: int = 10, dtype: str = "float32") -> Perplexity:
        source: Source = None  # type: ignore[assignment]
        return evaluate.dense_perplexity(source, sha256, of, window, cache, dtype=dtype, threads=3)

    assert measured().perplexity == pytest.approx(50, rel=1e-6)
    assert measured() == measured()
    assert made == [(None, "float32", 3)]
    # What another result depends on is measured again.
    measured(sha256="b"), measured(of=ids + 1), measured(window=11), measured(dtype="bfloat16")
    assert len(made) == 5
