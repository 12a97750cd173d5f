import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from adaptc.cli import main
from adaptc.cli.progress import LogProgress, Speed, duration, shown_progress
from adaptc.runtime.progress import SILENT, counted
from tests.fakes.progress import Told

WORK = """
import time, sys, click
from adaptc.cli.progress import shown_progress

@click.command()
@click.option("--quiet", is_flag=True)
def work(quiet):
    with shown_progress() as progress:
        progress.expect(3)
        progress.stage("capture [lm]")
        time.sleep(0.3)
        progress.stage("gptq")
        for done in range(9):
            progress.step(done, 8, "loss 0.5")
            time.sleep(0.15)
        progress.stage("write bundle")
        print("ready", file=sys.stderr, flush=True)
        time.sleep(60 if "wait" in sys.argv else 0)
    click.echo("result")

work(args=[each for each in sys.argv[1:] if each.startswith("-")])
"""


def test_items_are_counted() -> None:
    told = Told()
    told.stage("s")
    assert list(counted("abc", told)) == ["a", "b", "c"]
    assert told.steps_of("s") == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert list(counted(range(2), SILENT)) == [0, 1]


def test_time_left_is_measured_over_the_steps_of_the_last_seconds() -> None:
    speed = Speed()
    assert speed.left(100, 200, 0.0) == ""  # found done: nothing is measured
    assert speed.left(101, 200, 1.0) == "about 99 s left"
    assert speed.left(102, 200, 40.0) == "about 64 min left"  # 98 steps of 39 s
    for second in range(41, 80):
        left = speed.left(62 + second, 200, float(second))
    assert left == "about 59 s left"  # one a second, whatever was before
    assert speed.left(200, 200, 80.0) == ""


@pytest.mark.parametrize(("seconds", "text"), [(3.2, "3 s"), (99.4, "99 s"), (100, "2 min"), (9000, "2.5 h")])
def test_durations_are_said_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class Log:
    """A log progress under a clock that a test moves."""

    def __init__(self) -> None:
        self.now, self.lines = 0.0, list[str]()
        self.progress = LogProgress(self.lines.append, lambda: self.now)

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            self.progress.tick()


def test_a_log_is_quiet_about_short_work() -> None:
    log = Log()
    log.progress.stage("a")
    log.run(1)
    log.progress.stage("b")
    log.progress.end()
    assert log.lines == []


def test_a_log_says_stages_as_they_begin_and_steps_now_and_then() -> None:
    log = Log()
    log.progress.stage("capture lm")
    log.run(4)
    log.progress.stage("gptq")
    for done in range(26):
        log.progress.step(done, 100, "loss 0.5")
        log.run(1)
    log.progress.stage("lower")
    log.progress.end()
    assert log.lines == [
        "    2.0 s  capture lm",
        "    4.0 s  gptq",
        "   14.0 s  gptq: 9 of 100, about 91 s left, loss 0.5",
        "   24.0 s  gptq: 19 of 100, about 81 s left, loss 0.5",
        "   30.0 s  lower",
        "   30.0 s  done",
    ]


def test_a_log_of_hours_stays_short() -> None:
    log = Log()
    log.progress.stage("train")
    log.run(6 * 3600)
    assert 50 < len(log.lines) < 150


def test_a_log_has_no_control_characters() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, check=True)
    assert done.stdout == b"result\n"
    assert done.stderr == b"ready\n"  # too short for a line


def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptc.cli.progress.QUIET_FOR", 0.0)
    import click

    @click.command()
    @click.option("-q", "--quiet", is_flag=True)
    def work(quiet: bool) -> None:
        with shown_progress() as progress:
            progress.stage("a")

    assert "a\n" in CliRunner().invoke(work, []).stderr
    assert CliRunner().invoke(work, ["-q"]).stderr == ""
    assert "--quiet" in CliRunner().invoke(main, ["--help"]).output


def on_terminal(*arguments: str, interrupt_at: bytes = b"") -> tuple[int, bytes]:
    """The exit code of `WORK` with a terminal for stderr, and what it wrote there."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, *arguments], stdout=subprocess.DEVNULL, stderr=follower, env=environment
    )
    os.close(follower)
    seen, until = b"", time.monotonic() + 30
    while time.monotonic() < until:
        if not select.select([leader], [], [], 1.0)[0]:
            continue
        try:
            piece = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        seen += piece
        if interrupt_at and interrupt_at in seen:
            process.send_signal(signal.SIGINT)
            interrupt_at = b""
    os.close(leader)
    return process.wait(10), seen


def test_a_terminal_shows_stage_steps_and_time_left_and_keeps_what_was_finished() -> None:
    code, seen = on_terminal()
    text = seen.decode()
    assert code == 0
    assert "[2/3]" in text
    assert "8/8" in text
    assert " left, loss 0.5" in text
    last = text.rsplit("\x1b[2K", 1)[-1]
    assert "━" not in last  # the line that changes is gone
    assert " s\x1b[0m  capture [lm]" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is back


def test_an_interrupted_terminal_has_its_cursor_back() -> None:
    code, seen = on_terminal("wait", interrupt_at=b"ready")
    assert code != 0
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")
    assert b"\xe2\x94\x81" not in seen[seen.rindex(b"\x1b[2K") :]
