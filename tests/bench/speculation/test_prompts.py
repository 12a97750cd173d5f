from __future__ import annotations

import ast
import json
from collections import Counter
from pathlib import Path

import pytest

from adaptc.bench.speculation import texts
from adaptc.bench.speculation.prompts import KINDS, SIZES, Prompt, PromptEncoder, choose_prompts, read_prompts
from adaptc.errors import RequestError
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.sources import calibration_text
from tests.models import tiny_tokenizer


def reader(room: int, *, chat: bool = False) -> PromptEncoder:
    return PromptEncoder(Tokenizer(tiny_tokenizer.files(tiny_tokenizer.byte_level())), chat, room)


def content(prompt: Prompt) -> str:
    text = prompt.messages[-1]["content"]
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("size", SIZES)
def test_passages_are_whole_sentences_of_the_size(size: int) -> None:
    found = texts.passages(size)
    assert len(found) >= 12
    assert len(set(found)) == len(found)
    for text in found:
        assert len(text) <= size
        assert text[-1] in ".!?:)"
        assert "\n" not in text


def test_functions_are_code_that_can_be_read() -> None:
    found = texts.functions(1600)
    assert len(found) >= 50
    for name, code in found:
        [function] = ast.parse(code).body
        assert isinstance(function, ast.FunctionDef)
        assert function.name == name
        assert len(code) <= 1600
    assert all(len(code) <= 400 for _, code in texts.functions(400))


def test_nothing_that_is_asked_is_about_rights_or_was_calibrated_on() -> None:
    calibrated = " ".join(calibration_text.OWN.read_text(encoding="utf-8").split())
    for kind, make in KINDS.items():
        for messages in make(800):
            text = str(messages[-1]["content"])
            assert "copyright" not in text.lower(), kind
            assert "license" not in text.lower(), kind
            given = " ".join(text.partition("\n\n")[2].split() or text.split())
            assert given[:60] not in calibrated, kind


def test_a_page_without_its_code_and_headings() -> None:
    page = (
        "The title\n*********\n\nFirst words of a paragraph that is long enough to be taken, and goes on in\n"
        "a second line.\n\n   code = 1\n\nstmt ::= a rule, which has the length of a paragraph, and so would be taken"
        " too\n\nCopyright belongs to somebody, and this paragraph is long enough to say so in full length.\n"
    )
    taken = "First words of a paragraph that is long enough to be taken, and goes on in a second line."
    assert list(texts._prose(page)) == [taken]
    assert texts._up_to("One. Two is longer. Three.", 12) == "One."
    assert texts._up_to("No end within.", 5) == ""


def test_a_seed_chooses_and_kinds_have_as_many_as_asked() -> None:
    fits = reader(5000)
    one, again, other = (choose_prompts(list(KINDS), 4, seed, fits) for seed in (0, 0, 1))
    assert one == again
    assert one != other
    assert Counter(each.kind for each in one) == dict.fromkeys(KINDS, 4)
    assert len({content(each) for each in one}) == len(one)


def test_texts_get_shorter_until_prompts_fit() -> None:
    long = choose_prompts(["summary"], 3, 0, reader(2000))
    short = choose_prompts(["summary"], 3, 0, reader(260))
    assert max(len(each.ids) for each in short) <= 260 < min(len(each.ids) for each in long)


def test_too_little_room_and_too_many_prompts_are_said() -> None:
    with pytest.raises(
        RequestError, match=r"^2 prompts of the kind 'edit': 0 are there that fit into 20 tokens; fewer"
    ):
        choose_prompts(["edit"], 2, 0, reader(20))
    with pytest.raises(RequestError, match=r"^99 prompts of the kind 'chat': 8 are there that fit"):
        choose_prompts(["chat"], 99, 0, reader(5000))


def test_each_kind_asks_what_it_says() -> None:
    def first(kind: str) -> str:
        return content(choose_prompts([kind], 1, 0, reader(5000))[0])

    assert first("summary").partition("\n\n")[2] in texts.passages(SIZES[0])
    question = first("question")
    assert question.count(question.split("'")[1]) >= 2
    assert first("edit").partition("```python\n")[2].removesuffix("\n```") in dict(texts.functions(SIZES[0])).values()
    [chat] = choose_prompts(["chat"], 1, 0, reader(5000))
    assert [each["role"] for each in chat.messages] == ["user", "assistant", "user"]


def test_messages_go_through_the_chat_template_or_are_plain_text() -> None:
    plain = reader(5000)
    [chat] = choose_prompts(["chat"], 1, 0, plain)
    text = plain.tokenizer.decode(chat.ids)
    assert text.startswith(f"User: {chat.messages[0]['content']}\nAssistant: ")
    assert text.endswith("\nAssistant:")
    files = tiny_tokenizer.files(tiny_tokenizer.byte_level())
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    templated = PromptEncoder(Tokenizer({**files, "chat_template.jinja": template.encode()}), True, 5000)
    prompt = templated.prompt("own", ({"role": "user", "content": "Hello"},))
    assert templated.tokenizer.decode(prompt.ids) == "[user]Hello"


def written(path: Path, *records: object) -> Path:
    path.write_text("".join(f"{json.dumps(each)}\n" for each in records))
    return path


def test_prompts_of_a_file(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    file = written(
        tmp_path / "own.jsonl",
        {"kind": "mail", "prompt": "one"},
        {"kind": "talk", "messages": turns},
        {"kind": "mail", "prompt": "two"},
    )
    every = read_prompts(file, [], None, reader(100))
    assert [(each.kind, content(each)) for each in every] == [("mail", "one"), ("mail", "two"), ("talk", "c")]
    assert every[2].messages == tuple(turns)
    assert [content(each) for each in read_prompts(file, ["mail"], 1, reader(100))] == ["one"]
    with pytest.raises(RequestError, match=r"own\.jsonl: has no 'poem'; there are: mail, talk$"):
        read_prompts(file, ["poem"], None, reader(100))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "x"}, r":1: \"kind\" and one of \"prompt\" and \"messages\" are needed"),
        ({"kind": "a"}, r":1: \"kind\" and one of"),
        ({"kind": "a", "prompt": "x", "messages": []}, r":1: \"kind\" and one of"),
        ({"kind": "a", "messages": [{"role": "user"}]}, r":1: messages: each needs \"role\" and \"content\""),
        ({"kind": "a", "prompt": "a long one " * 20}, r":1: \d+ tokens; up to 40 leave room for the answer"),
    ],
)
def test_a_line_that_is_no_prompt_is_said(tmp_path: Path, record: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        read_prompts(written(tmp_path / "own.jsonl", record), [], None, reader(40))
