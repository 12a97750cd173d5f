from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import click
import pytest
from click.testing import CliRunner, Result

from adaptc import runtime
from adaptc.cli import COMMANDS, main
from adaptc.errors import LoadError
from adaptc.runtime import Session
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.spec import passes as spec
from tests.models import tiny_tokenizer
from tests.models.history_lm import HistoryLm, decoder_spec
from tests.models.sessions import session_of
from tests.repo import ROOT

HEAVY = ("numpy", "torch", "transformers", "pydantic", "yaml", "rich", "onnxruntime", "tokenizers", "jinja2")


def run(*arguments: str, text: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), input=text, prog_name="adaptc")


def command_that_raises(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command("schema")
    def failing() -> None:
        click.echo("half a result")
        raise error

    monkeypatch.setattr("adaptc.cli.inspecting.schema.command", failing)


def test_help_lists_every_command_with_its_own_first_line() -> None:
    shown = run("--help")
    assert shown.exit_code == 0
    for name, (module, line) in COMMANDS.items():
        assert module.rpartition(".")[2] == name.replace("-", "_"), "a command's file has its name"
        assert f"  {name} " in shown.stdout
        command = main.get_command(click.Context(main), name)
        assert command is not None
        assert (command.name, (command.help or "").partition("\n")[0]) == (name, line)


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from adaptc.cli import main\n"
        "try: main(['--help'])\n"
        f"except SystemExit: print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.stdout.splitlines()[-1] == "[]"
    # CPU seconds: on a quiet machine the wall clock says the same, on a busy one it measures the others.
    assert min(seconds) < 0.3


@pytest.mark.parametrize("module", sorted({module for module, _ in COMMANDS.values()}))
def test_the_command_modules_import_nothing_heavy(module: str) -> None:
    code = f"import sys, adaptc.cli.{module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_version_and_usage() -> None:
    assert run("--version").stdout == "adaptc 0.1.0\n"
    for arguments in (["frobnicate"], ["check"], ["check", "a", "b"], ["doctor", "--no-such"], ["generate", "b"]):
        done = run(*arguments)
        assert (done.exit_code, done.stdout) == (2, "")
        assert "Error: " in done.stderr


@pytest.mark.parametrize(
    ("name", "hint"), [("compil", "did you mean 'compile'?"), ("frobnicate", "there are: compile, train")]
)
def test_an_unknown_command_gets_the_nearest_name(name: str, hint: str) -> None:
    done = run(name)
    assert done.exit_code == 2
    assert f"Error: no command {name!r}; {hint}" in done.stderr


def test_errors_of_ours_are_lines_and_exit_1(monkeypatch: pytest.MonkeyPatch) -> None:
    command_that_raises(LoadError("a: is wrong\nb: is wrong too"), monkeypatch)
    done = run("schema")
    assert (done.exit_code, done.stdout) == (1, "half a result\n")
    assert done.stderr == "Error: a: is wrong\nError: b: is wrong too\n"


def test_bugs_keep_their_traceback_and_exit_70(monkeypatch: pytest.MonkeyPatch) -> None:
    command_that_raises(ZeroDivisionError("oops"), monkeypatch)
    done = run("schema")
    assert done.exit_code == 70
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.endswith(
        "ZeroDivisionError: oops\nThis is a bug in adaptc; please report it with the lines above.\n"
    )


def test_an_interrupt_is_one_line_and_exit_130(monkeypatch: pytest.MonkeyPatch) -> None:
    command_that_raises(KeyboardInterrupt(), monkeypatch)
    done = run("schema")
    assert (done.exit_code, done.stderr) == (130, "\nInterrupted.\n")


def test_memory_that_is_full_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    command_that_raises(MemoryError(), monkeypatch)
    done = run("schema")
    assert (done.exit_code, done.stderr) == (1, "Error: out of memory; `adaptc check` says how much is needed\n")


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "adaptc", "schema", "--markdown"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, stderr = process.communicate(timeout=60)
    assert stderr == b""


# ---- inspect ----


@dataclass(frozen=True, slots=True)
class Halve:
    """Halve something.

    Keeps: nothing.
    """

    name: ClassVar[str] = "halve"
    graph: str
    parts: tuple[int, ...] = (1, 2)


@pytest.fixture
def halve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "known_passes", lambda: {"halve": Halve})
    monkeypatch.setattr(spec, "outside_passes", lambda: ())


@pytest.mark.usefixtures("halve")
def test_passes_lists_and_explains() -> None:
    assert run("passes").stdout == "halve  Halve something.\n"
    assert run("passes", "halve").stdout == (
        "halve\n\nHalve something.\n\nKeeps: nothing.\n\n"
        "Options:\n  graph: str  (required)\n  parts: tuple[int, ...]  (default (1, 2))\n"
    )
    done = run("passes", "halv")
    assert (done.exit_code, done.stderr) == (1, "Error: no pass 'halv'; did you mean 'halve'?\n")


def test_schema_prints_the_page() -> None:
    page = ROOT / "docs" / "spec.md"
    assert run("schema", "--markdown").stdout == page.read_text()


def test_doctor_prints_what_it_finds() -> None:
    lines = run("doctor").stdout.splitlines()
    assert lines[0].split()[0] == "adaptc"
    assert any(line.split()[:2] == ["engine", "onnxruntime"] for line in lines)
    found = json.loads(run("doctor", "--json").stdout)
    assert found["engines"]["onnxruntime"]["version"] is not None
    assert set(found["cache"]) == {"path", "bytes"}


def test_check_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text("version: 1\nmodels: {lm: {source: no/such.gguf}}\n")
    done = run("check", str(path), "--json", "--set", "calibration.text=none.txt")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found["ok"] is False
    assert [each for each in found["findings"] if each["about"] == "lm"] == [
        {"about": "lm", "level": "error", "text": f"no/such.gguf: no such file or folder: {tmp_path / 'no/such.gguf'}"}
    ]
    done = run("check", str(path))
    assert done.exit_code == 1
    assert f"lm       error  no/such.gguf: no such file or folder: {tmp_path / 'no/such.gguf'}\n" in done.stdout
    done = run("check", str(path), "--set", "target.wieghts=int4")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == ("Error: --set target.wieghts=int4: target.wieghts: unknown key; did you mean 'weights'?\n")


# ---- serve ----


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A model one can compute by hand in place of every bundle; gives the options of the last load."""
    tiny_tokenizer.save(tiny_tokenizer.byte_level(), tmp_path / "tokenizer")
    tokenizer = Tokenizer(tmp_path / "tokenizer")
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
    assert session == {"path": Path("bundle"), "threads": 3, "verify": False, "budget": None}
    assert done.stdout == words(5) + "\n"
    assert run("generate", "bundle", "-p", "a", "-n", "5", "--no-stream").stdout == done.stdout
    run("generate", "bundle", "-p", "a", "-n", "5", "--budget", "0.5")
    assert session["budget"] == 0.5, "so that the graph is loaded that will run"


@pytest.mark.usefixtures("session")
def test_a_budget_without_gates_is_said() -> None:
    dense, cheap = run("generate", "bundle", "-p", "a"), run("generate", "bundle", "-p", "a", "--budget", "0.5")
    assert (cheap.stdout, dense.stderr) == (dense.stdout, "")
    assert cheap.stderr == "this bundle has no gates: it runs dense whatever the budget\n"
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
        (["--temperature", "-1"], "sampling.temperature: -1.0; a number from 0 to 100 is needed"),
        (["--temperature", "nan"], "sampling.temperature: nan; a number from 0 to 100 is needed"),
        (["--top-p", "0"], "sampling.top_p: 0.0; a number above 0, at most 1 is needed"),
        (["--top-k", "-3"], "sampling.top_k: -3; a whole number from 0 is needed"),
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
    whole = Session.chat
    asked: list[list[dict[str, str]]] = []
    said: list[str] = []

    def interrupted(self: Session, messages: list[dict[str, str]], **options: Any) -> Any:
        asked.append(list(messages))
        pieces = whole(self, messages, **options)
        yield next(pieces)
        pieces.close()
        assert self.last is not None
        said.append(self.last.text)
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "chat", interrupted)
    done = run("chat", "bundle", "-n", "6", text="hello\nmore\n")
    assert done.exit_code == 0
    assert said[0]
    assert asked[1] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": said[0]},
        {"role": "user", "content": "more"},
    ]


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_real_interrupt_is_one_line() -> None:
    code = (
        "import click, time\nfrom adaptc.cli import main\nfrom adaptc.cli.inspecting import schema\n"
        "@click.command('schema')\ndef slow():\n    print('begun', flush=True)\n    time.sleep(30)\n"
        "schema.command = slow\nmain(['schema'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "\nInterrupted.\n")
