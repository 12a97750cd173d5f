"""Bundles with gates as models of lm-evaluation-harness: budgets change what is scored and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="pip install 'adaptc[eval]'")

from lm_eval.api.instance import Instance

from adaptc.evaluation.harness.model import BundleLM
from adaptc.runtime import Bundle, load
from tests.cli.running import run
from tests.models import gated_bundle

CONTEXT = " ".join(f"w{number}" for number in range(3, 23))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return gated_bundle.write(tmp_path_factory.mktemp("budgets") / "bundle", tokenizer=True)


@pytest.mark.parametrize("budget", [1.0, 0.0])
def test_choices_after_one_context_are_scored_as_texts_are(bundle: Bundle, budget: float) -> None:
    """Several choices of one token are read from one row of logits: as if each text were scored by itself."""
    choices = [f" w{number}" for number in (5, 9, 30)]
    model = BundleLM(bundle, budget=budget, batch=2, threads=1)
    asked = [Instance("loglikelihood", {}, (CONTEXT, choice), at) for at, choice in enumerate(choices)]
    found = model.loglikelihood(asked)
    with load(bundle.path, threads=1) as session:
        assert session.tokenizer is not None
        expected = []
        for choice in choices:
            ids = session.tokenizer.encode(CONTEXT + choice)
            expected.append(float(session.score(np.array(ids), budget=budget, step=True).values[-1]))
    assert [value for value, _ in found] == pytest.approx(expected, abs=2e-3 if budget else 1e-5)
    assert len(set(expected)) == 3
    dense = model.by(None, 1.0).loglikelihood(asked)
    assert (dense == pytest.approx(found)) == (budget == 1)
    model.close()


def test_a_row_for_each_budget_says_what_was_skipped(bundle: Bundle, tmp_path: Path) -> None:
    lines = [json.dumps({"question": f"w{number} ?", "answers": [f"w{number}"]}) for number in range(9)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    arguments = ("quality", str(bundle.path), "--tasks", "capitals", "--file", f"capitals={tmp_path / 'q.jsonl'}")
    budgets = ("--budget", "1", "--budget", "0", "--batch", "2", "--threads", "1")
    done = run(*arguments, *budgets, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert list(found) == ["budget 1", "budget 0"]
    assert found["budget 1"]["ffn_skipped"] == 0 < found["budget 0"]["ffn_skipped"] <= 2 / 3
    assert [row["capitals"]["asked"] for row in found.values()] == [5, 5]
    done = run(*arguments, *budgets)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[3].count(" ± ") == 1, "the second row is compared with the first"
