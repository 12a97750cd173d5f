"""What the page `/ui` is made of: its files, who may read them, and the numbers that it shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from time import monotonic
from typing import Any

import numpy as np
import pytest

from adaptc.runtime import LoadTargets
from adaptc.runtime.generation.result import Result, Trace
from adaptc.runtime.model.budget import Skips
from adaptc.runtime.server.endpoints.parts import ServerParts
from adaptc.runtime.server.observing.recent import MOST_TOKENS, SECONDS, LastWritten, Recent
from adaptc.runtime.server.serving.models import load_model
from adaptc.runtime.server.serving.settings import hash_of
from adaptc.runtime.server.ui.files import KINDS, PATHS
from tests.repo import ROOT
from tests.server.served import ask, by_hand, classifier, error_of, events, message, parts_of

STORED = ROOT / "tests/stored/schema4"
FOLDER = ROOT / "runtime/server/ui"
KEY = "0123456789abcdef"
SECRET = "the secret of the cat"


@pytest.fixture(scope="module")
def stored() -> Iterator[ServerParts]:
    models = [load_model(STORED / name, name, threads=1) for name in ("gated", "stitched")]
    parts = parts_of(*models, classifier())
    yield parts
    parts.models.close()


def state(parts: ServerParts, seen: int = 0) -> dict[str, Any]:
    """What is said of each model."""
    answer = ask(parts, f"/ui/state?seen={seen}").json()
    return {each["name"]: each for each in answer["models"]}


def test_every_file_is_served_with_its_type_and_runs_nothing_from_elsewhere(stored: ServerParts) -> None:
    assert {file.name for file in FOLDER.iterdir() if file.suffix not in (".py", ".pyc", "")} == set(KINDS)
    for path in PATHS:
        answer = ask(stored, path)
        assert answer.status_code == 200
        name = path.removeprefix("/ui").removeprefix("/") or "page.html"
        assert answer.headers["content-type"].partition(";")[0] == KINDS[name]
        policy = dict(each.split(" ", 1) for each in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"(src|href)=\"(https?:)?//|url\(|@import|innerHTML|\bon\w+=", answer.text), path
    for name in ("../files.py", "page.html", "no.js", "%2e%2e/files.py"):
        assert ask(stored, f"/ui/{name}").status_code == 404


def test_every_script_and_style_that_the_page_names_is_there() -> None:
    named = set()
    for name in KINDS:
        text = (FOLDER / name).read_text(encoding="utf-8")
        named |= set(re.findall(r"\"ui/([\w.]+)\"|from \"\./([\w.]+)\"", text))
    assert {first or second for first, second in named} == set(KINDS) - {"page.html"}


def test_the_page_needs_no_key_and_its_numbers_do() -> None:
    parts = parts_of(by_hand(), keys=frozenset({hash_of(KEY)}))
    for path in PATHS:
        assert ask(parts, path).status_code == 200
    for path in ("/ui/state", "/ui/no.js", "/ui/", "/metrics"):
        assert ask(parts, path).status_code == 401
    assert ask(parts, "/ui/state", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert ask(parts, "/ui/state", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


@pytest.mark.parametrize("path", ["/ui", "/ui/state", "/ui/page.js"])
def test_a_page_of_another_name_gets_nothing(path: str) -> None:
    parts = parts_of(by_hand())
    assert ask(parts, path, headers={"Host": "evil.example:8000"}).status_code == 403
    answer = ask(parts, path, headers={"Origin": "https://evil.example"})
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_server_may_have_no_page() -> None:
    parts = parts_of(by_hand(), ui=False)
    for path in (*PATHS, "/ui/state"):
        assert ask(parts, path).status_code == 404
    assert not [path for path in ask(parts, "/openapi.json").json()["paths"] if path.startswith("/ui")]


def test_the_last_request_is_told_in_numbers_only(stored: ServerParts) -> None:
    body = {
        "model": "gated",
        "messages": message(SECRET),
        "max_tokens": 20,
        "temperature": 0,
        "adaptc": {"budget": 0.0, "skips": True},
    }
    answer = ask(stored, "/v1/chat/completions", body).json()
    text = ask(stored, "/ui/state").text
    told = state(stored)["gated"]
    assert SECRET not in text
    assert answer["choices"][0]["message"]["content"] not in text
    last = told["last"]
    assert (last["budget"], last["new_tokens"]) == (0.0, answer["usage"]["completion_tokens"])
    assert last["ffn_skipped"] == answer["adaptc"]["ffn_skipped"] > 0
    by_token = [each for each in answer["adaptc"]["skipped_by_token"] if each is not None]
    assert last["skipped_by_gate"] == ["".join(each) for each in zip(*by_token, strict=True)]
    assert told["gates"] == {"layers": [1, 2], "blocks": 3}
    assert told["minute"]["requests"] >= 1
    assert told["minute"]["first_ms"][0] > 0
    assert told["written_tokens"] >= last["new_tokens"]
    assert "skipped_by_gate" not in state(stored, last["number"])["gated"]["last"]
    assert "skipped_by_gate" in state(stored, last["number"] - 1)["gated"]["last"]


def test_routes_and_modalities_are_told(stored: ServerParts) -> None:
    ask(stored, "/v1/completions", {"model": "stitched@small", "prompt": [3, 1, 4], "max_tokens": 2})
    ask(stored, "/v1/infer", {"model": "views", "inputs": {"cheap": [[1, 2, 3]]}})
    told = state(stored)
    assert told["stitched"]["last"]["routes"] == [[0, "small"]]
    assert told["stitched"]["routes"] == {"large": 0, "small": 1, "short": 0, "sandwich": 0}
    assert told["views"]["last"]["modalities"] == [["cheap"]]
    assert told["views"]["dropped"] == {"cheap": 0, "dear": 1}
    assert (told["views"]["chat"], told["stitched"]["chat"]) == (None, "messages")


def test_the_ceiling_of_budgets_is_told_where_budgets_count() -> None:
    targets = LoadTargets(time_to_first_token=1e-4, min_budget=0.4)  # any step misses it
    parts = parts_of(load_model(STORED / "gated", "gated", threads=1, targets=targets), by_hand())
    body = {"model": "gated", "prompt": [5, 9, 40, 7, 101, 33], "max_tokens": 24, "temperature": 0}
    end = monotonic() + 30
    while ask(parts, "/v1/completions", body).json()["adaptc"]["lowered_to"] != 0.4:
        assert monotonic() < end, "no budget was lowered"
    told = state(parts)
    parts.models.close()
    assert told["hand"]["budget_ceiling"] is None
    assert 0 <= told["gated"]["budget_ceiling"] < 0.4
    assert told["gated"]["pressure"] > 0.9
    assert told["gated"]["budget_lowered"] >= 1
    assert (told["gated"]["last"]["budget"], told["gated"]["last"]["lowered_to"]) == (None, 0.4)


@pytest.mark.parametrize("seen", ["-1", "x", "1e3", "9" * 16, "٣"])
def test_what_was_seen_is_a_number(seen: str) -> None:
    answer = ask(parts_of(by_hand()), "/ui/state", params={"seen": seen})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "seen")


def result(tokens: int, skipped: float) -> Result:
    ran = np.ones((tokens, 4), np.bool_)
    ran[: round(tokens * skipped)] = False
    trace = Trace(3, tokens, 0.1, 0.2 * (tokens - 1), 0.3, skips=Skips(ran, 8))
    return Result("text", tuple(range(tokens)), 3, "length", trace)


def test_a_minute_is_a_minute() -> None:
    now = [100.0]
    recent = Recent(lambda: now[0])
    recent.wrote("a", result(5, 0.4), 1.0, 0.5)
    now[0] += SECONDS - 1
    recent.wrote("a", result(1, 0), 2.0, None)
    [first, second] = recent.minute("a")
    assert [first.first, first.each, first.whole, first.skipped] == pytest.approx([0.3, 0.2, 1.0, 0.2])
    assert (second.first, second.each) == (0.3, None)
    now[0] += 2
    assert recent.minute("a") == (second,)
    assert recent.minute("b") == ()


def test_a_long_request_keeps_its_last_blocks_alone() -> None:
    recent = Recent()
    recent.wrote("a", result(MOST_TOKENS + 10, 0.01), 1.0, None)
    last = recent.last["a"]
    assert isinstance(last, LastWritten)
    assert last.ran is not None
    assert last.ran.shape == (MOST_TOKENS, 4)
    assert last.ran.base is None  # nothing else is kept with it


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_tells_the_skipped_blocks_of_its_tokens(stored: ServerParts, path: str) -> None:
    prompt = {"messages": message("w1 w2")} if "chat" in path else {"prompt": "w1 w2 w3 w4"}
    body = {"model": "gated", **prompt, "max_tokens": 30, "temperature": 0, "adaptc": {"budget": 0.0, "skips": True}}
    whole = ask(stored, path, body).json()
    by_token = whole["adaptc"]["skipped_by_token"]
    assert len(by_token) == whole["usage"]["completion_tokens"]
    told = [each for each in by_token if each is not None]
    assert by_token[0] is None
    assert len(told) > 5
    for place, share in enumerate(whole["adaptc"]["skipped_by_layer"].values()):
        assert sum(each[place] == "1" for each in told) / len(told) == pytest.approx(share, abs=1e-4)
    chunks = events(ask(stored, path, {**body, "stream": True}))
    assert [one for each in chunks for one in each["adaptc"]["skipped_by_token"]] == by_token
    plain = {**body, "adaptc": {"budget": 0.0}, "stream": True}
    assert ["skipped_by_token" in each.get("adaptc", {}) for each in events(ask(stored, path, plain))] == [False] * len(
        chunks
    )


def test_without_gates_no_token_has_skipped_blocks() -> None:
    body = {"prompt": [3, 1, 4], "max_tokens": 3, "adaptc": {"skips": True}}
    assert ask(parts_of(by_hand()), "/v1/completions", body).json()["adaptc"]["skipped_by_token"] == [None] * 3


def colours(text: str, theme: str) -> dict[str, tuple[float, ...]]:
    """The variables of a theme that are colours, as shares of red, green and blue."""
    blocks = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    found = dict(re.findall(r"--([\w-]+): (#\w+)", blocks[theme == "dark"]))
    wide = {
        name: value if len(value) == 7 else "#" + "".join(2 * each for each in value[1:])
        for name, value in found.items()
    }
    return {name: tuple(int(value[at : at + 2], 16) / 255 for at in (1, 3, 5)) for name, value in wide.items()}


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """As WCAG 2 has it, from 1 to 21."""

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in colour]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(theme: str) -> None:
    known = colours((FOLDER / "page.css").read_text(encoding="utf-8"), theme)
    for ink in ("ink", "soft", "bad", "c0"):
        for behind in ("page", "panel"):
            assert contrast(known[ink], known[behind]) >= 4.5, f"{ink} on {behind}"
    assert contrast(known["on-strong"], known["strong"]) >= 4.5
    assert contrast(known["c1"], known["page"]) >= 3  # a line of a chart
    assert contrast(known["c0"], known["track"]) >= 3


def test_the_page_looks_like_the_report() -> None:
    """Both have one palette; the runtime cannot import the report's style sheet."""
    report = (ROOT / "adaptc/report/style.css").read_text(encoding="utf-8")
    page = (FOLDER / "page.css").read_text(encoding="utf-8")
    for theme in ("light", "dark"):
        ours, theirs = colours(page, theme), colours(report, theme)
        shared = ("page", "ink", "soft", "rule", "panel", "good", "bad", "c0", "c1")
        assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def test_the_page_s_own_requests_are_not_in_the_log(stored: ServerParts, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "adaptc.server")
    ask(stored, "/ui/state")
    assert not caplog.records
    ask(stored, "/v1/models")
    assert json.dumps([each.__dict__["fields"]["endpoint"] for each in caplog.records]) == '["/v1/models"]'
