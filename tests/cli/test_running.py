"""Commands that answer prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adaptc import runtime
from adaptc.runtime import Session, Stream
from adaptc.runtime.text.tokenizer import Tokenizer
from tests.cli.running import run
from tests.models import tiny_tokenizer
from tests.models.history_lm import HistoryLm, decoder_spec
from tests.models.sessions import session_of

NEITHER = {"budget": None, "max_loss": None, "unpaid": None, "speculate": None}
"""Options of `load` that no request needs."""


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A model one can compute by hand in place of every bundle; gives the options of the last load."""
    tokenizer = Tokenizer(tiny_tokenizer.files(tiny_tokenizer.byte_level()))
    given: dict[str, Any] = {}

    def load(path: Path, **options: Any) -> Session:
        given.update(options, path=path)
        lm = HistoryLm(decoder_spec(vocab=320, max_tokens=200))
        return session_of(lm.engine, lm.spec, tokenizer)

    monkeypatch.setattr(runtime, "load", load)
    return given


def words(count: int, start: str = "a") -> str:
    """What the model writes after a prompt."""
    with runtime.load("x") as running:
        return running.generate(start, max_new_tokens=count).text


def test_generate_prints_the_answer_alone(session: dict[str, Any]) -> None:
    done = run("generate", "bundle", "-p", "a", "-n", "5", "--threads", "3", "--no-verify")
    assert (done.exit_code, done.stderr) == (0, "")
    assert session == {"path": Path("bundle"), **NEITHER, "device": "auto", "threads": 3, "verify": False}
    assert done.stdout == words(5) + "\n"
    assert run("generate", "bundle", "-p", "a", "-n", "5", "--no-stream").stdout == done.stdout
    run("generate", "bundle", "-p", "a", "-n", "5", "--budget", "0.5")
    assert session["budget"] == 0.5, "so that the graph is loaded that will run"


def test_a_device_is_named(session: dict[str, Any]) -> None:
    assert run("generate", "bundle", "-p", "a", "--device", "cuda:1").exit_code == 0
    assert session["device"] == "cuda:1"
    assert run("chat", "bundle", "--device", "cpu", text="/quit\n").exit_code == 0
    assert session["device"] == "cpu"


@pytest.mark.usefixtures("session")
def test_a_budget_without_gates_is_refused() -> None:
    cheap = run("generate", "bundle", "-p", "a", "--budget", "0.5")
    assert (cheap.exit_code, cheap.stdout) == (1, "")
    assert cheap.stderr == (
        "Error: budget: this bundle has neither gates nor a router and always runs whole; leave it out\n"
    )
    wrong = run("generate", "bundle", "-p", "a", "--budget", "nan")
    assert wrong.stderr == "Error: budget: nan; a number from 0 (cheapest) to 1 (dense) is needed\n"


@pytest.mark.usefixtures("session")
def test_generate_answers_several_in_order() -> None:
    done = run("generate", "bundle", "-p", "a", "-p", "b", "-n", "4")
    assert done.stdout == f"{words(4, 'a')}\n\n{words(4, 'b')}\n"


@pytest.mark.usefixtures("session")
def test_generate_as_json_and_its_trace() -> None:
    done = run("generate", "bundle", "-p", "a", "-n", "4", "--json", "--trace")
    answer = json.loads(done.stdout)
    assert answer["text"] == words(4)
    assert (len(answer["ids"]), answer["finish_reason"]) == (4, "length")
    assert answer["trace"] == json.loads(done.stderr)
    assert answer["trace"]["new_tokens"] == 4
    assert answer["trace"]["ffn_skipped"] == 0.0
    assert answer["trace"]["decode_tokens_per_second"] > 0


@pytest.mark.usefixtures("session")
def test_sampling_is_repeatable() -> None:
    options = ["-p", "a", "-n", "8", "--temperature", "5", "--top-k", "50", "--seed", "7"]
    first = run("generate", "bundle", *options).stdout
    assert run("generate", "bundle", *options).stdout == first
    assert run("generate", "bundle", *options[:-1], "8").stdout != first


@pytest.mark.usefixtures("session")
def test_a_prompt_from_a_file_and_from_stdin(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"a")
    expected = words(4) + "\n"
    assert run("generate", "bundle", "-f", str(tmp_path / "p.txt"), "-n", "4").stdout == expected
    assert run("generate", "bundle", "-f", "-", "-n", "4", text="a").stdout == expected
    done = run("generate", "bundle", "-f", "-", text=b"ab\xff")
    assert (done.exit_code, done.stderr) == (1, "Error: -: not UTF-8 at byte 2; save the prompt as UTF-8\n")
    done = run("generate", "bundle", "-f", str(tmp_path / "none"))
    assert done.stderr == f"Error: {tmp_path / 'none'}: cannot be read: No such file or directory\n"


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--temperature", "-1"], "temperature: -1.0; a number from 0 to 100 is needed"),
        (["--temperature", "nan"], "temperature: nan; a number from 0 to 100 is needed"),
        (["--top-p", "0"], "top_p: 0.0; a number above 0, at most 1 is needed"),
        (["--top-k", "-3"], "top_k: -3; a whole number from 0 is needed"),
        (["--max-new-tokens", "0"], "max_new_tokens: 0; a whole number from 1 is needed"),
        (["--seed", "-1"], "seed: -1; a whole number from 0 is needed"),
    ],
)
def test_absurd_values_get_one_line(options: list[str], expected: str) -> None:
    done = run("generate", "bundle", "-p", "a", *options)
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", f"Error: {expected}\n")


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    done = run("generate", str(tmp_path / "no"), "-p", "a")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {tmp_path / 'no'}: ")
    assert done.stderr.count("\n") == 1


def conversation(*messages: tuple[str, str]) -> str:
    with runtime.load("x") as running:
        return running.chat([{"role": role, "content": text} for role, text in messages], max_new_tokens=6).text


@pytest.mark.usefixtures("session")
def test_chat_keeps_the_conversation_until_it_is_reset() -> None:
    done = run("chat", "bundle", "--system", "s", "-n", "6", text="hello\n\nmore\n/reset\nhello\n/what\n/quit\nnever\n")
    assert (done.exit_code, done.stderr) == (0, "")
    first = conversation(("system", "s"), ("user", "hello"))
    second = conversation(("system", "s"), ("user", "hello"), ("assistant", first), ("user", "more"))
    assert done.stdout == f"{first}\n{second}\n{first}\n"


@pytest.mark.usefixtures("session")
def test_chat_ends_with_its_input_and_without_a_last_newline() -> None:
    assert run("chat", "bundle", "-n", "6", text="hello").stdout == conversation(("user", "hello")) + "\n"
    assert run("chat", "bundle", text="").stdout == ""


@pytest.mark.usefixtures("session")
def test_a_conversation_that_is_too_long_says_how_to_go_on() -> None:
    done = run("chat", "bundle", "-n", "6", text=f"hello\n{'x' * 300}\n/reset\nhello\n")
    answer = conversation(("user", "hello"))
    assert (done.exit_code, done.stdout) == (0, f"{answer}\n{answer}\n")
    assert done.stderr.startswith("Error: prompt: ")
    assert done.stderr.endswith("; /reset begins anew\n")
    assert run("chat", "bundle", text="x" * 300).exit_code == 1


@pytest.mark.usefixtures("session")
def test_ctrl_c_stops_the_answer_and_not_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, read = Session.chat, Stream.__next__
    asked: list[list[dict[str, str]]] = []
    told: list[str] = []

    def chat(self: Session, messages: list[dict[str, str]], **options: Any) -> Any:
        asked.append(list(messages))
        return whole(self, messages, **options)

    def interrupted(self: Stream) -> str:
        if len(told) == 1:
            raise KeyboardInterrupt
        told.append(read(self))
        return told[-1]

    monkeypatch.setattr(Session, "chat", chat)
    monkeypatch.setattr(Stream, "__next__", interrupted)
    done = run("chat", "bundle", "-n", "6", text="hello\nmore\n")
    assert done.exit_code == 0
    assert told[0]
    assert asked[1] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": told[0]},
        {"role": "user", "content": "more"},
    ]
