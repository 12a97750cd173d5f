"""Engines that fail and bugs of ours: what clients are told, what the log has, and that others go on."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest

from adaptc.runtime.errors import EngineError
from tests.models.history_lm import HistoryLm
from tests.server.served import SPEC, ask, by_hand, error_of, message, parts_of

ENGINE = "server: the engine failed; the log says why, under this request's id"
BUG = "server: a bug of adaptc; its log has the traceback, under this request's id"


class Failing:
    """Fails once, at the run that comes after so many."""

    def __init__(self, error: Exception, after: int) -> None:
        self.error, self.left = error, after

    def __call__(self) -> None:
        self.left -= 1
        if self.left == -1:
            raise self.error


def last_of(answer: httpx.Response) -> dict[str, Any]:
    """The error that a stream ends with."""
    *_, last, done, nothing = answer.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    told: dict[str, Any] = json.loads(last.removeprefix("data: "))
    error: dict[str, Any] = told["error"]
    return error


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "said"),
    [(EngineError("/secret/lm.onnx: broken"), ENGINE), (RuntimeError("/secret"), BUG)],
    ids=["engine", "bug"],
)
def test_a_failure_is_told_without_its_details(
    path: str, after: int, stream: bool, error: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    parts = parts_of(by_hand(lm=HistoryLm(SPEC, before=Failing(error, after))))
    prompt = {"prompt": "the cat"} if path == "/v1/completions" else {"messages": message("the cat")}
    body = {**prompt, "max_tokens": 9, "temperature": 0, "stream": stream}
    with caplog.at_level(logging.INFO, logger="adaptc.server"):
        answer = ask(parts, path, body)
    told = last_of(answer) if stream else error_of(answer)
    assert (told["message"], told["type"]) == (said, "server_error")
    assert answer.status_code == (200 if stream else 500)
    assert "/secret" not in answer.text
    logged = [str(getattr(record, "fields", "")) + str(record.exc_info) for record in caplog.records]
    assert any("/secret" in each for each in logged)
    again = ask(parts, path, {**body, "stream": False})
    assert again.status_code == 200
    assert parts.entrance.inside("hand") == 0
