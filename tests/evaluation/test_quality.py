"""The table of quality: checks of instructions, lettered questions, and a stitched bundle's rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from adaptc.cli import main
from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.errors import RequestError
from adaptc.evaluation import instructions, letters
from adaptc.evaluation.instructions import INSTRUCTIONS
from adaptc.evaluation.letters import Lettered, likeliest, read_lettered
from adaptc.evaluation.quality import table
from adaptc.runtime.backends.backend import DecoderOptions
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.loading import load_decoder, tokenizer_of
from adaptc.runtime.model.options import RequestOptions
from adaptc.spec.reading import read_spec
from tests.models import stitched

KEPT = (
    ("exactly three words", "Blue and deep", "Blue and very deep"),
    ("exactly one word", "White.", "It is white."),
    ("at most 20 words", "It translates code.", "word " * 21),
    ("at least 100 words", "word " * 100, "word " * 99),
    ("capital letters", "READ, 2 BOOKS!", "READ a BOOK"),
    ("only in lowercase", "rain falls, often.", "Rain falls."),
    ('keys "name" and "age"', '```json\n{"name": "Ann", "age": 3}\n```', '{"name": "Ann"}'),
    ('single key "answer"', '{"answer": 4}', "The answer is 4"),
    ("exactly 3 fruits", "- fig\n- pear\n- plum", "- fig\n- pear"),
    ("List 5 animals", "\n".join(f"{n}. ox" for n in range(1, 6)), "ox, cow"),
    ("'river' and 'candle'", "A candle by the River.", "A candle."),
    ("without using the word 'cat'", "It purrs.", "A cat purrs."),
    ("without any comma", "Music moves us.", "Music, of course."),
    ("Answer only with 'yes'", "Yes.", "Yes, it is."),
    ("That is all.", "Green. That is all.", "Green. That is all"),
    ("Begin your answer", "Dear reader, it pulls.", "It pulls, dear reader,"),
    ("double quotation marks", '"Paris is old."', 'Paris is "old".'),
    ("double angular brackets", "Here: <<Leaves>>", "<Leaves>"),
    ("separated by a line with only ***", "One.\n***\nTwo.", "One.\n\nTwo."),
    ("3 placeholders", "[name] [date] [place]", "[name] [date]"),
)

ITEMS = [
    {"question": "What color is grass?", "choices": ["red", "green", "blue"], "answer": 1},
    {"question": "How many is two and two?", "choices": ["3", "4"], "answer": 1},
]


@pytest.mark.parametrize(("about", "good", "bad"), KEPT)
def test_checks_tell_kept_from_broken(about: str, good: str, bad: str) -> None:
    [instruction] = (each for each in INSTRUCTIONS if about in each.prompt)
    assert instruction.kept(good)
    assert not instruction.kept(bad.strip())


def test_no_instruction_is_kept_by_silence() -> None:
    assert [each.prompt for each in INSTRUCTIONS if each.kept("")] == []
    assert len({each.prompt for each in INSTRUCTIONS}) == len(INSTRUCTIONS)
    assert not instructions.json_with("a")("[1]")


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


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("stitched")
    spec = read_spec(stitched.write(folder), ("target.max_tokens=256",))
    return compile_spec(spec, folder, folder / "bundle", Cache(folder / "cache")).bundle


def test_the_likeliest_letter_is_the_models(bundle: Bundle) -> None:
    tokenizer, rows = tokenizer_of(bundle), load_decoder(bundle, DecoderOptions(threads=1))
    assert tokenizer is not None
    given = stitched.halved(stitched.weights(stitched.stitch().plan(stitched.program())))
    item = Lettered(ITEMS[0]["question"], ("red", "green", "blue"), 1)  # type: ignore[arg-type]
    ids = np.array([tokenizer.encode(item.prompt)])
    picks = [tokenizer.encode(letter, special=False)[-1] for letter in letters.LETTERS[:3]]
    for route in stitched.ROUTES:
        expected = stitched.eager(route, ids, given)[0, -1, picks].argmax()
        assert likeliest(rows, tokenizer, item, RequestOptions(route=route)) == expected, route
    rows.close()
    with pytest.raises(RequestError, match="this bundle holds 256: leave it out"):
        likeliest(rows, tokenizer, Lettered("x" * 999, ("a", "b"), 0), RequestOptions())


def test_the_command_fills_a_row_for_each_route(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat " * 5)
    (tmp_path / "letters.jsonl").write_text("\n".join(map(json.dumps, ITEMS)))
    asked = [{"question": f"{n}?", "answers": ["x"]} for n in range(7)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, asked)))
    files = (
        f"--{name}={tmp_path / file}"
        for name, file in (("text", "text.txt"), ("letters", "letters.jsonl"), ("questions", "questions.jsonl"))
    )
    arguments = ["quality", str(bundle.path), *files, "--first", "2", "--window", "32", "--threads", "1"]
    shown = CliRunner().invoke(main, [*arguments, "--json"])
    assert shown.exit_code == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert list(found) == [*stitched.ROUTES, "router"]
    assert "bytes_per_token" not in found["router"]
    for row in found.values():
        assert row["perplexity"] > 1
        assert (row["letters_asked"], row["trivia_asked"], row["instructions_asked"]) == (2, 2, 2)
    shown = CliRunner().invoke(main, [*arguments, "--route", "short", "--no-instructions"])
    assert shown.exit_code == 0, shown.stderr
    head, _, row = shown.stdout.splitlines()
    assert head == "| route | bytes a token | perplexity | letters | trivia |"
    assert row.startswith("| short | 1 MB, 100.0% | ")


def test_the_table_says_how_sure_it_is() -> None:
    found: dict[str, dict[str, Any]] = {
        "a": {"bytes_per_token": 10**9, "letters": 0.5, "letters_asked": 100},
        "b": {"bytes_per_token": 5 * 10**8},
    }
    assert table(found).splitlines()[2:] == ["| a | 1000 MB, 100.0% | 50.0% ± 5.0% |", "| b | 500 MB, 50.0% |  |"]
