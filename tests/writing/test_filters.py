"""What is kept of what a model writes: each filter with what it takes and what it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptc.errors import RequestError
from adaptc.writing.exclusion import excluded
from adaptc.writing.filters import Requests, bare, fit_request, has_marks, listed, loops, refuses


def test_lists_are_taken_apart() -> None:
    assert listed("Sure!\n1. What is **this**?\n2) **Bold**: and text\n  3. third\nno entry\n- nor this\n") == [
        "What is this?",
        "Bold: and text",
        "third",
    ]


def test_what_announces_a_text_is_left_out() -> None:
    assert bare("Sure, here it is:\n\nThe sea is wide.") == "The sea is wide."
    assert bare('"The sea is wide."') == "The sea is wide."
    assert bare('"Yes" is not "no"') == '"Yes" is not "no"'
    assert bare("Here is the sea. It is wide.") == "Here is the sea. It is wide."


def test_loops_are_runs_that_come_again() -> None:
    assert loops([5, 6, 7, 8] * 20)
    assert loops([1, 2] * 12)
    assert not loops(list(range(60)))
    table = [token for row in range(9) for token in (1, 2, 100 + row, 2, 200 + row, 3, 300 + row)]
    assert not loops(table), "a table's marks repeat, its cells do not"


@pytest.mark.parametrize(
    "text", ["I'm sorry, but no.", "As an AI language model, I", "I cannot help with that.", "Sorry"]
)
def test_refusals(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize("text", ["I am a gardener.", "The sorry state of things", "Can I? I cannot say enough of it."])
def test_what_is_no_refusal(text: str) -> None:
    assert not refuses(text)


def test_marks_of_templates() -> None:
    for text in ("a <|im_end|> b", "[INST] x", "### Response", "x\nUser: hi", "\ufffd", "<start_of_turn>"):
        assert has_marks(text)
        assert not fit_request(f"{text} and more of it")
    for text in ("a < b | c", "[list] of things", "## Title", "the user: me", "x -> y"):
        assert not has_marks(text)


def test_near_requests_are_the_same() -> None:
    requests = Requests()
    text = "Write a short poem about the sea and the ships that sail on it in the winter months"
    assert requests.add(text)
    assert not requests.add(text.upper() + "!")
    assert not requests.add(text + " please")
    assert requests.add("Write a short poem about a garden and its old wall, as seen by a cat in the evening light")
    assert len(requests) == 2


def test_exclusion_is_by_eight_words_or_all_of_fewer() -> None:
    long = "A train leaves the station at nine and arrives at noon after three stops"
    requests = Requests([long, "What is the capital of France?", "Paris is"])
    assert requests.excludes("Please say: what is the CAPITAL of France? Thanks")
    assert requests.excludes("One day a train leaves the station at nine and arrives late")
    assert not requests.excludes("What is the capital of Spain?")
    assert not requests.excludes("A train leaves the station at ten and arrives")
    assert not requests.excludes("Paris is large"), "two words are too common"


def test_texts_of_files_are_excluded(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "one two three four", "turns": ["five six seven eight"]}\n')
    (tmp_path / "b.yaml").write_text("nine ten eleven twelve?: [thirteen]\n")
    (tmp_path / "c.txt").write_text("plain line of text\n")
    found = excluded([tmp_path / name for name in ("a.jsonl", "b.yaml", "c.txt")])
    assert {"one two three four", "five six seven eight", "nine ten eleven twelve?", "plain line of text"} <= set(found)
    assert len(excluded()) > 20, "those of our own evaluation always are"
    (tmp_path / "bad.jsonl").write_text("{\n")
    with pytest.raises(RequestError, match=r"bad\.jsonl: cannot be read"):
        excluded([tmp_path / "bad.jsonl"])
