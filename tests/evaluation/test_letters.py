"""Files of questions with lettered choices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adaptc.errors import RequestError
from adaptc.evaluation.letters import Lettered, read_lettered

ITEMS = [
    {"question": "What color is grass?", "choices": ["red", "green", "blue"], "answer": 1},
    {"question": "How many is two and two?", "choices": ["3", "4"], "answer": 1},
]


def test_reads_lettered_questions(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, ITEMS)))
    first, second = read_lettered(tmp_path / "q.jsonl")
    assert first.prompt == "What color is grass?\nA. red\nB. green\nC. blue\nAnswer:"
    assert second == Lettered("How many is two and two?", ("3", "4"), 1)
    asked = "Q: What color\nis grass?\n(A) red (B) green, or\nblue (C) one\n"
    text = f"About colors.\n\n{asked}A: Let's think. The answer is (B).\n\n"
    (tmp_path / "q.json").write_text(json.dumps({"colors": text, "more": text.replace("(B).", "(C).")}))
    found = read_lettered(tmp_path / "q.json")
    assert found[0] == Lettered("What color\nis grass?", ("red", "green, or\nblue", "one"), 1)
    assert found[1].answer == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "q.jsonl",
            '{"question": "a", "choices": ["b", "c"], "answer": 2}',
            r"q\.jsonl:1: a question, 2 to 10 choices",
        ),
        ("q.jsonl", '{"question": "a", "choices": ["b"], "answer": 0}', r"q\.jsonl:1: a question, 2 to 10 choices"),
        ("q.jsonl", '{"question": "a"}', r"q\.jsonl:1: a question, 2 to 10 choices"),
        ("q.json", '{"a": "nothing"}', r"q\.json: no questions"),
        ("q.json", "[1]", r"q\.json: no mapping"),
        ("q.json", "{", r"q\.json: not JSON"),
    ],
)
def test_refuses_what_it_cannot_ask(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RequestError, match=said):
        read_lettered(tmp_path / name)
