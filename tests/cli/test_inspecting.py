"""Commands that look at a spec, a pass or this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from adaptc.spec import passes as spec
from adaptc.spec.json_schema import schema_text
from tests.cli.running import run
from tests.repo import ROOT


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


def test_schema_prints_the_shipped_file_which_is_up_to_date() -> None:
    assert run("schema").stdout == schema_text(), "write schema_text() to adaptc/spec/schema.json"


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
