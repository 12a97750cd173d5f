"""Files of chats: what is written is read, damage is named by its line, and rows keep chats and answers whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptc.errors import LoadError
from adaptc.sources.chats import Chat, append_chats, begin_chats, holds_chats, pack, read_chats

ABOUT: dict[str, Any] = {"model": "tiny", "sha256": "0" * 64, "recipe": {"seed": 1}}
MESSAGES = ({"role": "user", "content": "Grüß"}, {"role": "assistant", "content": "dich"})
ONE = Chat((1, 5, 6, 2, 7, 8, 3), ((4, 7),), "letters", MESSAGES)
TWO = Chat((1, 9, 2, 4, 3, 1, 9, 2, 4, 4, 3), ((3, 5), (8, 11)), "turns", MESSAGES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    begin_chats(path, ABOUT)
    append_chats(path, [ONE])
    append_chats(path, [TWO, ONE])
    return path


def test_what_is_written_is_read(file: Path) -> None:
    found = read_chats(file)
    assert found.metadata == ABOUT
    assert found.chats == (ONE, TWO, ONE)
    assert (found.tokens, found.answer_tokens) == (25, 11)
    assert holds_chats(file)
    assert "Grüß" in file.read_text(encoding="utf-8"), "texts can be read by eye"


def test_a_torn_last_line_is_dropped_and_written_over(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    assert read_chats(file).chats == (ONE, TWO)
    append_chats(file, [ONE])
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "not JSON"),
        ("[]", "not an object"),
        ('{"ids": [1]}', "keys ids; answers, ids, kind, messages are right"),
        ('{"ids": [], "answers": [], "kind": "", "messages": []}', "ids: a list of token ids"),
        ('{"ids": [true], "answers": [], "kind": "", "messages": []}', "ids: a list of token ids"),
        ('{"ids": [1], "answers": [[0, 2]], "kind": "", "messages": []}', r"answers: \[0, 2\]"),
        ('{"ids": [1, 2], "answers": [[1, 2], [0, 1]], "kind": "", "messages": []}', r"answers: \[0, 1\]"),
        ('{"ids": [1], "answers": 3, "kind": "", "messages": []}', "answers"),
        ('{"ids": [1], "answers": [], "kind": 3, "messages": []}', "kind"),
        ('{"ids": [1], "answers": [], "kind": "", "messages": [{"role": "user"}]}', "messages"),
        ('{"ids": [1], "answers": [], "kind": "", "messages": {}}', "messages"),
    ],
)
def test_a_damaged_line_is_named(file: Path, line: str, fault: str) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[2] = line
    file.write_text("".join(f"{each}\n" for each in lines), encoding="utf-8")
    with pytest.raises(LoadError, match=f"chats.jsonl:3: .*{fault}"):
        read_chats(file)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    for content, fault in {
        '{"a": 1}\n': "1: no {",
        "prose\n": "1: not JSON",
        json.dumps({"adaptc": "chats", "version": 2}) + "\n": "1: version 2",
        "": "1: not JSON",
    }.items():
        path.write_text(content, encoding="utf-8")
        with pytest.raises(LoadError, match=fault):
            read_chats(path)
    assert not holds_chats(path)
    with pytest.raises(LoadError, match="cannot be read"):
        read_chats(tmp_path / "none")
    assert not holds_chats(tmp_path / "none")
    with pytest.raises(LoadError, match="no whole line"):
        append_chats(path, [ONE])


def test_rows_begin_with_chats_and_keep_their_answers() -> None:
    ids, mask = pack([ONE, TWO, ONE], 16)
    assert ids.tolist() == [[*TWO.ids, *[3] * 5], [*ONE.ids, *ONE.ids, 3, 3]]
    assert mask[0].nonzero()[0].tolist() == [3, 4, 8, 9, 10]
    assert mask[1].nonzero()[0].tolist() == [4, 5, 6, 11, 12, 13]


def test_a_long_chat_is_cut() -> None:
    ids, mask = pack([TWO], 9)
    assert ids.tolist() == [list(TWO.ids[:9])]
    assert mask[0].nonzero()[0].tolist() == [3, 4, 8]


def test_without_chats_there_are_no_rows() -> None:
    with pytest.raises(LoadError, match="no chats"):
        pack([], 8)


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 24))
def test_every_chat_lies_in_one_row(lengths: list[int], window: int) -> None:
    """Chats of distinct ids: each is found once, whole or cut at the window, and its answer is masked where it lies."""
    firsts = np.cumsum([0, *lengths]).tolist()
    chats = [
        Chat(tuple(range(at, at + n)), ((n // 2, n),), "any", ()) for at, n in zip(firsts[:-1], lengths, strict=True)
    ]
    ids, mask = pack(chats, window)
    assert ids.shape == mask.shape
    assert set(ids[:, 0].tolist()) <= set(firsts[:-1])
    kept = sorted(token for chat in chats for token in chat.ids[:window])
    assert sorted(set(ids.reshape(-1).tolist())) == kept
    answers = sorted(token for chat in chats for token in chat.ids[len(chat.ids) // 2 : window])
    assert sorted(ids[mask].tolist()) == answers
