"""What docs/serving.md shows is asked of a real server."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from adaptc.cli import main
from adaptc.runtime.server.app import ROUTES
from adaptc.runtime.server.protocol.schemas import CHAT, COMPLETION
from tests.repo import ROOT
from tests.server.served import ask, by_hand, parts_of
from tests.server.test_process import serving

PAGE = (ROOT / "docs/serving.md").read_text(encoding="utf-8")


def test_the_page_s_clients_get_answers(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai")
    [code] = re.findall(r"```python skip: tests/server[^\n]*\n(.*?)```", PAGE, re.DOTALL)
    [commands] = re.findall(r"```console skip: tests/server[^\n]*\n(.*?)```", PAGE, re.DOTALL)
    with serving(f"bundle={bundle}") as (_, url):
        exec(code.replace("http://localhost:8000", url), {})
        for command in commands.splitlines():
            program, target, h, header, d, body = shlex.split(command.removeprefix("$ "))
            assert (program, h, d) == ("curl", "-H", "-d")
            name, value = header.split(": ")
            answer = httpx.post(target.replace("http://localhost:8000", url), content=body, headers={name: value})
            assert answer.status_code == 200, answer.text
            assert json.loads(answer.text).keys() & {"choices", "tokens"}
    assert re.match(r".*12\n", capsys.readouterr().out, re.DOTALL)


def test_the_page_names_every_field_path_option_and_metric() -> None:
    with_effect = {*CHAT["properties"], *COMPLETION["properties"]} - {
        *("model", "messages", "prompt", "adaptc", "chat_template", "add_generation_prompt", "parallel_tool_calls"),
    }
    for name in with_effect:
        assert re.search(rf"`{name}\b", PAGE), name
    for route in ROUTES:
        path = re.sub(r"/\{.*", "", route.path)
        assert f" {path}" in PAGE, path
    shown = CliRunner().invoke(main, ["serve", "--help"]).output
    options = set(re.findall(r"--[a-z-]+", shown))
    told = set(re.findall(r"`(--[a-z-]+)", PAGE))
    assert told <= options
    assert {each for each in options if each.startswith(("--max", "--api", "--allow", "--drain", "--log"))} <= told
    metrics = ask(parts_of(by_hand()), "/metrics").text
    for name in re.findall(r"^# TYPE adaptc:(\w+)", metrics, re.MULTILINE):
        assert re.search(rf"`(adaptc:)?{name}`", PAGE) or name in {"http_requests_total", "num_requests_inside"}, name
