"""Answers of held-out chats: how likely they are, by budget, and how far from another bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adaptc.errors import RequestError
from adaptc.evaluation.chats import answer_losses
from adaptc.runtime import Bundle, load
from adaptc.runtime.model.options import RequestOptions
from adaptc.sources.chats import Chat
from tests.cli.running import run
from tests.models import gated_bundle, tiny

RANDOM = np.random.default_rng(4)
DENSE, CHEAP = RequestOptions(budget=1.0), RequestOptions(budget=0.0)


def chat(length: int, *answers: tuple[int, int]) -> Chat:
    return Chat(tuple(RANDOM.integers(2, tiny.VOCAB, length).tolist()), answers, "letters", ())


CHATS = (chat(30, (5, 12), (20, 30)), chat(20, (0, 4)), chat(90, (60, 90)), chat(90, (70, 90)))
"""The second begins with its answer; the last two are longer than the 64 tokens that the bundle holds."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return gated_bundle.write(tmp_path_factory.mktemp("chats") / "bundle", tokenizer=True)


def test_answer_tokens_alone_count(bundle: Bundle) -> None:
    [found] = answer_losses(bundle, CHATS, [DENSE], threads=1)
    expected: list[float] = []
    with load(bundle.path, threads=1) as session:
        for given, spans in (
            (CHATS[0], [*range(5, 12), *range(20, 30)]),
            (CHATS[1], range(1, 4)),
            (CHATS[2], range(60, 64)),
        ):
            values = session.score(np.array(given.ids[:64], np.int64), budget=1).values
            expected += [-values[at - 1] for at in spans]
    assert found.tokens == len(expected) == 17 + 3 + 4
    assert found.nll.value == pytest.approx(np.mean(expected), abs=1e-5)
    assert found.nll.low < found.nll.value < found.nll.high
    assert (found.kl, found.ffn_skipped) == (None, 0)


def test_under_a_budget_answers_are_read_as_if_written(bundle: Bundle) -> None:
    dense, cheap = answer_losses(bundle, CHATS, [DENSE, CHEAP], reference=bundle, threads=1)
    with load(bundle.path, threads=1) as session:
        values = session.score(np.array(CHATS[0].ids, np.int64), budget=0).values
    places = [*range(5, 12), *range(20, 30)]
    assert cheap.nll.each[0] * 24 / 3 == pytest.approx(-sum(values[at - 1] for at in places), rel=1e-5)
    assert 0 < cheap.ffn_skipped <= 2 / 3
    assert dense.kl is not None
    assert cheap.kl is not None
    assert abs(dense.kl.value) < 1e-3 < cheap.kl.value


def test_kl_is_that_of_the_distributions(bundle: Bundle, tmp_path: Path) -> None:
    """Against the dense twin, whose logits are computed apart here."""
    one = [Chat(CHATS[0].ids, ((10, 11),), "letters", ())]
    [found] = answer_losses(bundle, one, [CHEAP], reference=bundle, threads=1)
    assert found.kl is not None
    logits = {}
    with load(bundle.path, threads=1) as session:
        for budget in (1, 0):
            prefix = list(CHATS[0].ids[:10])
            scored = [session.score([*prefix, token], budget=budget).values[-1] for token in range(tiny.VOCAB)]
            logits[budget] = np.array(scored, np.float64)
    expected = (np.exp(logits[1]) * (logits[1] - logits[0])).sum()
    assert found.kl.value == pytest.approx(expected, abs=2e-3)


def test_chats_of_another_tokenizer_or_without_answers_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="chats: no answer within what the bundle holds"):
        answer_losses(bundle, [chat(20)], [DENSE])
    bare = gated_bundle.write(tmp_path / "bare")
    with pytest.raises(RequestError, match="no tokenizer; chats cannot be read"):
        answer_losses(bare, CHATS, [DENSE])


def test_the_command_reads_a_file_of_chats(bundle: Bundle, tmp_path: Path) -> None:
    from adaptc.sources.chats import append_chats, begin_chats

    begin_chats(tmp_path / "c.jsonl", {"model": "m"})
    append_chats(tmp_path / "c.jsonl", CHATS)
    asked = ("--chats", str(tmp_path / "c.jsonl"), "--reference", str(bundle.path), "--limit", "2", "--threads", "1")
    done = run("quality", str(bundle.path), *asked, "--budget", "1", "--budget", "0")
    assert done.exit_code == 0, done.output
    head, _, dense, cheap = done.stdout.splitlines()
    assert head == "| | bytes a token | nll | kl |"
    assert dense.startswith("| budget 1 | ")
    assert cheap.startswith("| budget 0 | ")
    assert cheap.count(" ± ") == 2
