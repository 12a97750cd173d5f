"""`adaptc bench --speculate` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from adaptc.bench.speculation import comparison
from adaptc.bench.speculation.comparison import Opened
from adaptc.bench.speculation.prompts import KINDS
from adaptc.bench.speculation.turns import Write, WrittenTokens
from adaptc.runtime import Bundle
from tests.cli.running import run as run_adaptc
from tests.models import attention_bundle, folder

COSTS = {1: 0.010, 2: 0.0125, 3: 0.0125}


@pytest.fixture(scope="module")
def drafting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model compiled as users compile it, so that it has graphs that verify, which drafts for itself."""
    root = tmp_path_factory.mktemp("drafting")
    spec, _ = folder.write(root, max_position_embeddings=1024, num_hidden_layers=2)
    spec.write_text(
        "version: 1\nmodels:\n  lm: {source: model}\n  small: {source: model}\npasses: [{draft_with: {model: small}}]\n"
        "target: {weights: fp32, max_tokens: 700}\n"
    )
    done = run_adaptc("compile", str(spec), "-o", str(root / "bundle"), "--cache-dir", str(root / "cache"))
    assert done.exit_code == 0, done.output
    return root / "bundle"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle without such graphs."""
    return attention_bundle.write(tmp_path_factory.mktemp("plain") / "bundle")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.jsonl"
    lines = [{"kind": "again", "prompt": "one two one two one"}, {"kind": "mail", "prompt": "Dear"}]
    path.write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    return path


def run(*arguments: object) -> Result:
    return run_adaptc("bench", *map(str, arguments))


def small(bundle: Path, *arguments: object) -> Result:
    return run(bundle, "--speculate", *arguments, "--new-tokens", 24, "--repeats", 1, "--threads", 1)


def scripted(monkeypatch: pytest.MonkeyPatch, **texts: tuple[int, ...]) -> None:
    """Let ways write these texts, the first in a second and each further one twice as fast as the one before."""

    def way(text: tuple[int, ...], seconds: float) -> Write:
        drafted = 0 if seconds == 1.0 else 6
        return lambda *_: WrittenTokens(text, seconds, drafted, drafted // 2)

    @contextmanager
    def opened(*_: object) -> Iterator[Opened]:
        yield Opened({name: way(text, 0.5**place) for place, (name, text) in enumerate(texts.items())}, COSTS)

    monkeypatch.setattr(comparison, "opened", opened)


def test_all_kinds_are_measured_and_all_ways_write_the_same(drafting: Path) -> None:
    done = small(drafting, "--samples", 1, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert list(report["kinds"]) == [*KINDS, "all"]
    for ways in report["kinds"].values():
        assert list(ways) == ["off", "lookup", "model", "auto"]
        assert all(found["equal"] == found["answers"] for found in ways.values())
        assert ways["off"]["drafted"] == 0
    assert report["differences"] == []
    assert len(report["answers"]) == 4 * len(KINDS)
    assert all(0 < len(each["ids"]) <= 24 for each in report["answers"])
    assert [each["tokens"] for each in report["costs"]] == list(range(1, 9))
    assert report["costs"][0]["plain_steps"] == 1.0
    assert all(each["seconds"] > 0 for each in report["costs"])
    assert report["settings"]["new_tokens"] == 24
    assert [each["kind"] for each in report["prompts"]] == list(KINDS)
    assert all(each["tokens"] + 24 <= 700 for each in report["prompts"])


def test_the_help_names_all_kinds() -> None:
    assert f"all: {', '.join(KINDS)}." in " ".join(run("--help").stdout.split())


def test_sampled_answers_are_the_same_too(drafting: Path, own: Path) -> None:
    cold, warm, other = (
        json.loads(small(drafting, "--prompts", own, *options, "--json").stdout)
        for options in ((), ("--temperature", 2), ("--temperature", 2, "--seed", 7))
    )
    assert list(warm["kinds"]) == ["again", "mail", "all"]
    assert warm["differences"] == cold["differences"] == []
    said = [[each["ids"] for each in report["answers"]] for report in (cold, warm, other)]
    assert said[0] != said[1] != said[2]
    assert [said[1][0]] * 4 == said[1][:4]  # all ways to the first prompt


def test_the_table_has_ratios_drafts_and_costs(plain: Bundle, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tuple(range(17))
    scripted(monkeypatch, off=text, lookup=text, auto=text)
    done = small(plain.path, "--prompts", own)
    assert done.exit_code == 0, done.output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert rows[:3] == [
        ["again", "off", "16.0", "–", "1.00", "–", "1/1"],
        ["", "lookup", "32.0", "2.00", "1.23", "3/6 (50%)", "1/1"],
        ["", "auto", "64.0", "4.00", "1.23", "3/6 (50%)", "1/1"],
    ]
    assert rows[6][0] == "all"
    assert rows[-2:] == [["ms", "10.0", "12.5", "12.5"], ["plain steps", "1.00", "1.25", "1.25"]]
    assert "1 threads; 2 prompts, 1 turn; medians over prompts, quartiles in brackets" in " ".join(done.stdout.split())


def test_another_text_is_an_error(plain: Bundle, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tuple(range(17))
    scripted(monkeypatch, off=text, lookup=text, auto=(*text[:5], 99))
    done = small(plain.path, "mail", "--prompts", own)
    assert done.exit_code == 1
    assert "Error: mail, prompt 1, turn 1: auto wrote another text after 5 tokens" in done.stderr
    assert "0/1" in done.stdout
    assert small(plain.path, "--prompts", own, "--json").exit_code == 1


def test_a_bundle_without_graphs_that_verify_is_said(plain: Bundle, own: Path) -> None:
    done = small(plain.path, "--prompts", own)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: speculate: 'lookup'; this bundle has no graphs that verify drafts")


def test_kinds_that_there_are_not_and_too_little_room(plain: Bundle, own: Path) -> None:
    assert (
        "no kind of text 'poem'; there are: summary, edit, question, code, free, chat"
        in small(plain.path, "edit,poem").stderr
    )
    assert "has no 'poem'; there are: again, mail" in small(plain.path, "poem", "--prompts", own).stderr
    done = run(plain.path, "--speculate", "free", "--new-tokens", 96)
    assert "holds 96 tokens, and answers may have 96; fewer new tokens are right" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--speculate", "--against", "all"), "--against: does nothing with --speculate; leave it out"),
        (("--speculate", "--long-tokens", "9"), "--long-tokens: does nothing with --speculate"),
        (("--speculate", "--route", "a", "--route", "b"), "--route: --speculate measures one at a time"),
        (("--prompts", "x"), "--prompts: is for --speculate"),
        (("--temperature", "1"), "--temperature: is for --speculate"),
        (("--budget", "0.5"), "--budget: is for --speculate"),
    ],
)
def test_options_that_would_do_nothing_are_refused(plain: Bundle, arguments: tuple[str, ...], said: str) -> None:
    done = run(plain.path, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_budget_and_a_seed_reach_the_answers(plain: Bundle, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    @contextmanager
    def opened(_: Bundle, settings: comparison.SpeculationSettings) -> Iterator[Opened]:
        seen.append(settings.request)
        yield Opened({"off": lambda *_: WrittenTokens((1,), 1.0)}, COSTS)

    monkeypatch.setattr(comparison, "opened", opened)
    assert small(plain.path, "--prompts", own, "--budget", 0.25, "--temperature", 0.5, "--seed", 3).exit_code == 0
    assert small(plain.path, "--prompts", own, "--seed", 3).exit_code == 0
    assert seen == [
        {"budget": 0.25, "route": None, "temperature": 0.5, "seed": 3},
        {"budget": None, "route": None},
    ]
