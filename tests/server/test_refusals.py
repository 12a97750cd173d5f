"""What is refused: with which status, and what is said to be right."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from adaptc.runtime.errors import RequestError
from adaptc.runtime.server.endpoints.parts import ServerParts
from adaptc.runtime.server.observing.logs import JsonLines
from adaptc.runtime.server.serving.settings import Settings, hash_of, read_keys
from adaptc.runtime.text.tokenizer import Tokenizer
from tests.server.served import ask, by_hand, error_of, message, parts_of

CHAT = "/v1/chat/completions"
HELLO = message("the cat")
KEY = "a-key-that-nobody-guesses"


@pytest.mark.parametrize(
    ("body", "status", "param", "said"),
    [
        ({}, 400, "messages", "messages: missing; a list is needed"),
        ({"messages": []}, 400, "messages", "messages: 0 entries; 1 to 10000 are right"),
        ({"messages": "hi"}, 400, "messages", "messages: 'hi'; a list is needed"),
        ({"messages": [{"content": "x"}]}, 400, "messages[0].role", "messages[0].role: missing; a string is needed"),
        (
            {"messages": HELLO, "temperature": -1},
            400,
            "temperature",
            "temperature: -1; a number from 0 to 100 is needed",
        ),
        (
            {"messages": HELLO, "temperature": True},
            400,
            "temperature",
            "temperature: True; a number from 0 to 100 is needed",
        ),
        ({"messages": HELLO, "top_p": 0}, 400, "top_p", "top_p: 0; a number above 0 to 1 is needed"),
        ({"messages": HELLO, "tempature": 1}, 400, "tempature", "tempature: no such field; did you mean temperature?"),
        ({"messages": HELLO, "model": "gpt"}, 404, "model", "model: no model 'gpt'; there are: tiny"),
        ({"messages": HELLO, "model": "tiny@fast"}, 404, "model", "model: no policy 'fast'; there are: tiny@dense"),
        ({"messages": HELLO, "stop": [""]}, 400, "stop[0]", "stop[0]: 0 characters; 1 to 1000 are right"),
        ({"messages": HELLO, "top_logprobs": 3}, 400, "top_logprobs", "top_logprobs: only with logprobs: true"),
        (
            {"messages": HELLO, "parallel_tool_calls": False},
            400,
            "parallel_tool_calls",
            "parallel_tool_calls: false; how many tools are called is the model's: leave it out",
        ),
        ({"messages": HELLO, "store": True}, 400, "store", "store: true; nothing is stored here: leave it out"),
        (
            {"messages": HELLO, "chat_template": "{{ x }}"},
            400,
            "chat_template",
            "chat_template: templates of requests are not taken; serve with --allow-templates, or leave it out",
        ),
        (
            {"messages": HELLO, "tools": [{"type": "function", "function": {"name": "f"}}]},
            400,
            "tools",
            "tools: this model's chat template does not use tools; leave them out",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}
                ]
            },
            400,
            "messages",
            "messages: an image, and this model reads text only",
        ),
        (
            {"messages": message("the cat " * 200)},
            400,
            "prompt",
            "this bundle holds 96: shorten it, or compile with a larger target.max_tokens",
        ),
    ],
)
def test_a_wrong_chat_is_refused_with_a_remedy(
    server: ServerParts, body: dict[str, Any], status: int, param: str, said: str
) -> None:
    answer = ask(server, CHAT, body)
    assert answer.status_code == status
    error = error_of(answer)
    assert error["message"].endswith(said)
    assert error["param"] == param
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "body: not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"[1]", "body: [1]; a JSON object is needed"),
        (b'{"temperature": NaN}', "body: not JSON: NaN is no JSON"),
        (b'{"a": "\\ud800"}', "body: a lone surrogate (\\ud800 to \\udfff); whole characters are right"),
        (b"\xff", "body: not JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"[" * 200000, "body: nested too deep; fewer lists within lists are right"),
        (
            b'{"seed": ' + b"9" * 5000 + b"}",
            "body: not JSON: Exceeds the limit (4300",
        ),
    ],
    ids=["empty", "list", "NaN", "surrogate", "bytes", "nested", "digits"],
)
def test_a_body_that_is_no_json_object_is_refused(server: ServerParts, content: bytes, said: str) -> None:
    answer = ask(server, CHAT, method="POST", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert error_of(answer)["message"].startswith(said)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_what_is_too_long_by_far_is_refused_before_it_is_read(
    server: ServerParts, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = server.models.text("tiny")[0]
    monkeypatch.setattr(Tokenizer, "encode", lambda *_: pytest.fail("it was read"))
    text = "x" * (model.max_characters + 1)
    answer = ask(server, path, {"messages": message(text)} if path == CHAT else {"prompt": text})
    error = error_of(answer)
    assert error["code"] == "context_length_exceeded"
    assert f"{len(text)} characters; this bundle holds 96 tokens" in error["message"]


def test_forms_of_browsers_are_refused(server: ServerParts) -> None:
    """A page of a stranger could send these without being asked."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = ask(server, CHAT, method="POST", content=b'{"messages": []}', headers={"content-type": kind})
        assert answer.status_code == 415
        assert error_of(answer)["message"].endswith("Content-Type: application/json is needed")
    preflight = ask(
        server, CHAT, method="OPTIONS", headers={"origin": "http://evil", "access-control-request-method": "POST"}
    )
    assert preflight.status_code == 405
    assert not [name for name in preflight.headers if name.startswith("access-control")]


def test_a_large_body_is_refused_however_it_comes() -> None:
    parts = parts_of(by_hand(), max_body=1024)
    for content in (b"x" * 1025, iterated(b"x" * 600, b"x" * 600)):
        answer = ask(parts, CHAT, method="POST", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert error_of(answer)["message"] == (
            "body: more than 1024 bytes; send less, or serve with a larger --max-body"
        )


async def iterated(*chunks: bytes) -> Any:
    for chunk in chunks:
        yield chunk


def test_other_names_of_this_machine_are_refused() -> None:
    parts = parts_of(by_hand())
    answer = ask(parts, "/v1/models", headers={"host": "evil.example:8000"})
    assert answer.status_code == 403
    assert (
        error_of(answer)["message"]
        == "host: not a name of this server; localhost is right, or serve with --allowed-host"
    )
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
        assert ask(parts, "/v1/models", headers={"host": host}).status_code == 200
    allowed = parts_of(by_hand(), allowed_hosts=("evil.example",))
    assert ask(allowed, "/v1/models", headers={"host": "evil.example:8000"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer another"}, 401),
        ({"authorization": f"Basic {KEY}"}, 401),
        ({"authorization": f"Bearer {KEY[:-1]}"}, 401),
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"authorization": f"bearer  {KEY}"}, 200),
        ({"x-api-key": KEY}, 200),
    ],
)
def test_a_key_is_needed_where_there_are_keys(headers: dict[str, str], status: int) -> None:
    parts = parts_of(by_hand(), keys=frozenset({hash_of("another-key-of-sixteen"), hash_of(KEY)}))
    for path in ("/v1/models", "/metrics", "/openapi.json"):
        answer = ask(parts, path, headers=headers)
        assert answer.status_code == status
        if status == 401:
            assert error_of(answer)["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
    assert ask(parts, "/health").status_code == ask(parts, "/ready").status_code == 200


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}\n\n  another-key-of-sixteen \n")
    settings = Settings(keys=read_keys(file))
    assert settings.lets_in(KEY)
    assert settings.lets_in("another-key-of-sixteen")
    assert not settings.lets_in("# ours")
    assert not settings.lets_in(None)
    file.write_text("\n")
    with pytest.raises(RequestError, match="holds no key; one on each line is needed"):
        read_keys(file)
    file.write_text("short\n")
    with pytest.raises(RequestError, match="key 1 has 5 characters; 16 or more are needed"):
        read_keys(file)


def test_the_log_has_numbers_and_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    parts = parts_of(by_hand(), keys=frozenset({hash_of(KEY)}))
    headers = {
        "authorization": f"Bearer {KEY}",
        "x-request-id": "mine-1",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    with caplog.at_level(logging.DEBUG, logger="adaptc.server"):
        body = {"messages": message("my secret is 1234"), "max_tokens": 5, "temperature": 0}
        answer = ask(parts, CHAT, body, headers=headers)
        ask(parts, "/v1/models/secret-path?key=secret-query", headers=headers)
        ask(parts, CHAT, {"messages": "my secret"}, headers=headers)
    assert answer.headers["x-request-id"] == "mine-1"
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records if record.name == "adaptc.server"]
    assert [each["status"] for each in lines] == [200, 404, 400]
    first = lines[0]
    assert (first["id"], first["trace"]) == ("mine-1", "0af7651916cd43dd8448eb211c80319c")
    assert (first["endpoint"], first["model"], first["new_tokens"]) == (CHAT, "hand", 5)
    text = json.dumps(lines)
    written = answer.json()["choices"][0]["message"]["content"]
    assert not [word for word in ("secret", KEY, written) if word in text]


def test_an_unknown_path_and_method_have_the_shape_of_errors(server: ServerParts) -> None:
    missing = ask(server, "/v1/images", {"input": "x"})
    assert (missing.status_code, error_of(missing)["type"]) == (404, "not_found_error")
    wrong = ask(server, CHAT)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert error_of(wrong)["message"] == "server: Method Not Allowed"


def test_an_id_that_would_forge_lines_of_the_log_is_replaced(server: ServerParts) -> None:
    answer = ask(server, "/health", headers={"x-request-id": "a b\tc"})
    assert len(answer.headers["x-request-id"]) == 32
