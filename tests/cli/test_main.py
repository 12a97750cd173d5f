"""The command line as a whole: help, unknown names, errors and exit codes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from adaptc.cli import COMMANDS, main
from adaptc.errors import LoadError
from tests.cli.running import run

HEAVY = ("numpy", "torch", "transformers", "pydantic", "yaml", "rich", "onnxruntime", "tokenizers", "jinja2")


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


@pytest.mark.parametrize(
    "code", ["import adaptc", "from adaptc.cli import main; main(['--help'], standalone_mode=False)"]
)
def test_a_start_imports_no_more_than_it_needs(code: str) -> None:
    """Compares modules and no seconds: what is imported is what a start costs, on a busy machine too."""
    code = f"import sys; before = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = done.stdout.splitlines()[-1].split()
    outside = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert outside <= {"adaptc", "click"}
    assert {name for name in names if name.startswith("adaptc")} <= {
        *("adaptc", "adaptc.cli", "adaptc.runtime", "adaptc.runtime.errors")
    }


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
    ("name", "hint"), [("compil", "did you mean 'compile'?"), ("frobnicate", "there are: compile, init, train")]
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


def test_an_interrupt_while_the_commands_are_imported_is_one_line() -> None:
    code = (
        "import builtins\nwhole = builtins.__import__\n"
        "def interrupted(name, *rest):\n"
        "    if name == 'click': raise KeyboardInterrupt\n"
        "    return whole(name, *rest)\n"
        "builtins.__import__ = interrupted\nfrom adaptc.__main__ import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "\nInterrupted.\n")


def test_output_that_cannot_be_written_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "adaptc", "schema"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "Error: standard output: No space left on device\n")


def test_an_output_that_is_closed_is_one_line() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -m adaptc schema >&-', sys.executable], stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "Error: standard output is closed; /dev/null is right where nothing shall be printed\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (IsADirectoryError(errno.EISDIR, "Is a directory", "folder"), "Error: folder: Is a directory\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "Error: standard output: No space left on device\n"),
    ],
)
def test_what_the_system_says_of_files_is_one_line(error: OSError, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command_that_raises(error, monkeypatch)
    done = run("schema")
    assert (done.exit_code, done.stderr) == (1, line)


def test_an_error_of_the_system_that_no_user_made_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    command_that_raises(OSError(errno.EBADF, "Bad file descriptor"), monkeypatch)
    assert run("schema").exit_code == 70
