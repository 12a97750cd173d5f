"""Answers under a budget: repetition, and questions with known answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from adaptc.cli import main
from adaptc.errors import RequestError
from adaptc.evaluation import answers, questions
from adaptc.runtime import Bundle, load
from tests.models import gated_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return gated_bundle.write(tmp_path_factory.mktemp("answers") / "bundle", tokenizer=True)


def test_repetition_counts_runs_that_stood_before() -> None:
    assert answers.repetition([1, 2, 3, 4, 5, 6]) == (0, 3)
    assert answers.repetition([1, 2, 3, 4, 1, 2, 3, 4]) == (1, 5)
    assert answers.repetition([7] * 10) == (6, 7)
    assert answers.repetition([1, 2]) == (0, 0)


def test_an_answer_is_right_if_it_begins_so() -> None:
    assert questions.is_right(" Paris, of course\nQuestion: x", ["Paris"])
    assert questions.is_right("The Hague.", ["Hague", "Amsterdam"])
    assert questions.is_right("Na", ["Na"])
    assert not questions.is_right("Nantes", ["Na"])
    assert not questions.is_right("", ["Na"])
    assert not questions.is_right("In Paris", ["Paris"])


def test_reads_prompts_and_questions(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"turns": ["One?", "Two?"]}\n\n{"prompt": "Three?"}\n')
    assert answers.read_prompts(tmp_path / "p.jsonl") == ["One?", "Three?"]
    listed = "".join(f"What is {n}?:\n- No\n- {n}\n" for n in range(6))
    (tmp_path / "q.yaml").write_text(f"AUTHOR: Someone\n{listed}")
    found = questions.read_questions(tmp_path / "q.yaml")
    assert len(found) == 6
    assert found[2] == questions.Question("What is 2?", ("No", "2"))
    lines = [json.dumps({"question": f"{n}?", "answers": ["x"]}) for n in range(5)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    assert questions.read_questions(tmp_path / "q.jsonl")[4].text == "4?"


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("p.jsonl", '{"prompt": 3}', r"p\.jsonl:1: no prompt"),
        ("p.jsonl", "{", r"p\.jsonl:1: not JSON"),
        ("p.jsonl", "[]", r"p\.jsonl:1: not an object"),
        ("q.yaml", "a: [b]", r"q\.yaml: 1 questions; more than 4"),
        ("q.yaml", "- a", r"q\.yaml: no mapping"),
        ("q.yaml", "a: [", r"q\.yaml: not YAML"),
        ("q.jsonl", '{"question": "a"}', r"q\.jsonl:1: 'a': a question with a list"),
    ],
)
def test_refuses_other_files(name: str, content: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    read = answers.read_prompts if name.startswith("p") else questions.read_questions
    with pytest.raises(RequestError, match=text):
        read(tmp_path / name)


def asked(bundle: Bundle, *arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["answers", str(bundle.path), "--threads", "1", "--json", *arguments])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_collapse_is_asked_of_both(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "w1 w2 w3 w4 w5 w6"}\n{"prompt": "w9"}\n{"prompt": "w8"}')
    arguments = ("--prompts", str(tmp_path / "p.jsonl"), "--new-tokens", "40", "--first", "2")
    found = asked(bundle, *arguments, "--budget", "0")
    assert found["prompts"] == 2
    assert found["dense_tokens"] == found["budget_tokens"] == 40
    assert found["dense_ffn_skipped"] == 0 < found["budget_ffn_skipped"]
    with load(bundle.path, threads=1) as session:
        written = [session.generate(text, max_new_tokens=40).ids for text in ("w1 w2 w3 w4 w5 w6", "w9")]
    assert found["dense_repetition"] == sum(answers.repetition(ids)[0] for ids in written) / (2 * 37)
    same = asked(bundle, *arguments, "--budget", "1")
    assert {name.removeprefix("budget_"): value for name, value in same.items() if name.startswith("budget_r")} == {
        "repetition": found["dense_repetition"]
    }


def test_questions_are_asked_of_both(bundle: Bundle, tmp_path: Path) -> None:
    with load(bundle.path, threads=1) as session:
        shots = "".join(f"Question: w{n} ?\nAnswer: w{n}\n\n" for n in range(4))
        said = session.generate(f"{shots}Question: w7 ?\nAnswer:", max_new_tokens=1).text
    lines = [{"question": f"w{n} ?", "answers": [f"w{n}"]} for n in range(4)]
    lines += [{"question": "w7 ?", "answers": ["nothing", said]}, {"question": "w9 ?", "answers": ["nothing"]}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = asked(bundle, "--questions", str(tmp_path / "q.jsonl"), "--budget", "1")
    assert (found["dense"], found["budget"], found["dense_prompt"], found["asked"]) == (1, 1, 1, 2)
    assert (found["ratio"], found["ffn_skipped"]) == (1, 0)
    other = asked(bundle, "--questions", str(tmp_path / "q.jsonl"), "--budget", "0")
    assert 0 < other["ffn_skipped"] <= 2 / 3


def test_one_kind_of_file_is_asked_for(bundle: Bundle) -> None:
    result = CliRunner().invoke(main, ["answers", str(bundle.path)])
    assert result.exit_code == 2
    assert "give either --prompts or --questions" in result.output
