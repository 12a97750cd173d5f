"""Figures with their intervals, the ways that are measured, and the table of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptc.cli import EVALUATING, main
from adaptc.errors import RequestError
from adaptc.evaluation.figures import Figure, cell, figure_of, mean_over, paired_difference, wilson
from adaptc.evaluation.quality import QualityRow, record, table, ways_of
from adaptc.runtime import Bundle
from tests.cli.running import run
from tests.models import gated_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return gated_bundle.write(tmp_path_factory.mktemp("quality") / "bundle", tokenizer=True)


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilsons_interval_is_that_of_the_tables(right: int, asked: int, low: float, high: float) -> None:
    """The last is the example of Newcombe (1998), method 3; the others are of R's `binom.confint(method="wilson")`."""
    assert wilson(right, asked) == pytest.approx((low, high), abs=5e-5)


def test_a_share_has_wilsons_interval_and_another_figure_its_standard_error() -> None:
    share = figure_of("acc", 0.5, 0.2, [0, 1, 0, 1])
    assert (share.low, share.high) == wilson(2, 4)
    other = figure_of("f1", 0.25, 0.1, [0.5, 0.0])
    assert (other.low, other.high) == pytest.approx((0.25 - 0.196, 0.25 + 0.196), abs=1e-4)
    assert not other.is_share


def test_a_mean_over_tokens_takes_texts_as_independent() -> None:
    """Four texts, of which each token lost the same: all that is known of them are four numbers."""
    figure = mean_over("nll", [20, 30, 10, 20], [10, 10, 10, 10])
    assert figure.value == 2
    assert figure.high - figure.value == pytest.approx(1.96 * (2 / 3) ** 0.5 / 2, abs=1e-3)
    assert sum(figure.each) / 4 == pytest.approx(figure.value)
    uneven = mean_over("nll", [2, 90], [1, 99])
    assert uneven.value == pytest.approx(0.92)
    assert sum(uneven.each) / 2 == pytest.approx(uneven.value)


def test_answers_to_the_same_questions_are_compared_one_by_one() -> None:
    base = figure_of("acc", 0.5, None, [1, 1, 0, 0] * 25)
    other = figure_of("acc", 0.49, None, [0, *([1, 1, 0, 0] * 25)[1:]])
    mean, half = paired_difference(other, base)
    assert mean == pytest.approx(-0.01)
    assert half == pytest.approx(1.96 * 0.01, rel=0.01)
    assert half < (other.high - other.low) / 4
    assert cell(other, base) == "49.0% (39.4% to 58.7%); -1.0 ± 2.0 points"
    shorter = figure_of("acc", 1.0, None, [1.0])
    assert cell(other, shorter) == cell(other), "other questions are not compared"


def test_the_table_says_how_sure_it_is() -> None:
    rows = {
        "a": QualityRow(1e9, {"letters": figure_of("acc", 0.5, None, [0.0, 1.0] * 50)}, {"perplexity": 12.3456}),
        "b": QualityRow(5e8, {"nll": Figure("nll", 1.5, 1.25, 1.75, (1.0, 2.0))}, {"ffn_skipped": 0.25}),
        "router": QualityRow(None, {"nll": Figure("nll", 1.5, 1.25, 1.75, (1.0, 2.0))}),
    }
    assert table(rows).splitlines() == [
        "| | bytes a token | perplexity | ffn_skipped | letters | nll |",
        "|---|---|---|---|---|---|",
        "| a | 1000 MB, 100.0% | 12.346 |  | 50.0% (40.4% to 59.6%) |  |",
        "| b | 500 MB, 50.0% |  | 25.0% |  | 1.5000 (1.2500 to 1.7500) |",
        "| router |  |  |  |  | 1.5000 (1.2500 to 1.7500) |",
    ]
    found = record(rows)
    assert found["a"]["letters"]["asked"] == 100
    assert found["b"] == {
        "bytes_per_token": 5e8,
        "ffn_skipped": 0.25,
        "nll": {"metric": "nll", "value": 1.5, "low": 1.25, "high": 1.75, "asked": 2, "each": [1.0, 2.0]},
    }
    assert "bytes_per_token" not in found["router"]


def test_budgets_are_rows_of_their_own(bundle: Bundle, tmp_path: Path) -> None:
    ways = ways_of(bundle, budgets=(1.0, 0.5))
    assert [(each.name, each.options.budget) for each in ways] == [("budget 1", 1.0), ("budget 0.5", 0.5)]
    [way] = ways_of(bundle)
    assert (way.name, way.options.budget, way.bytes_per_token) == ("", None, bundle.manifest.bytes_per_token)
    with pytest.raises(RequestError, match="route: no route 'x'; this bundle has none"):
        ways_of(bundle, ["x"])
    plain = gated_bundle.write(tmp_path / "plain", gated=False)
    with pytest.raises(RequestError, match="has neither gates nor a router"):
        ways_of(plain, budgets=(0.5,))


def test_something_must_be_measured(bundle: Bundle) -> None:
    done = run("quality", str(bundle.path))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "nothing to measure; give --tasks, --text or --chats" in done.stderr
    done = run("quality", str(bundle.path), "--tasks", "letters", "--file", "letters")
    assert done.exit_code == 2
    assert "NAME=FILE is right" in done.stderr


def test_without_the_library_its_extra_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    for name in ("model", "run"):
        monkeypatch.delitem(__import__("sys").modules, f"adaptc.evaluation.harness.{name}", raising=False)
    assert "lm_eval" in EVALUATING
    assert main.name is not None
    done = run("quality", str(bundle.path), "--tasks", "letters")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.endswith("Error: lm_eval is not installed; pip install 'adaptc[eval]'\n")
