"""Adapters over HTTP: each is a model of its own, by name or under `adaptc`, and requests of several share steps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.runtime.errors import RequestError
from adaptc.runtime.server.endpoints.parts import ServerParts
from adaptc.runtime.server.serving.models import Models, load_model
from adaptc.spec.reading import parse_spec
from tests.server.served import ask, ask_async, by_hand, error_of, events, parts_of
from tests.sources.adapters.made import adapter, base

pytest.importorskip("peft")

SPEC = """
version: 1
models: {lm: {source: base, adapters: [{source: one, name: sql}, {source: two, name: chat}]}}
target: {weights: fp32, max_tokens: 64}
"""
COMPLETE = "/v1/completions"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerParts]:
    """A server of a bundle with two adapters."""
    folder = tmp_path_factory.mktemp("adapters")
    base(folder / "base")
    adapter(folder / "one", folder / "base", seed=1, target_modules="all-linear")
    adapter(folder / "two", folder / "base", seed=2, r=2, target_modules="all-linear")
    compile_spec(parse_spec(SPEC), folder, folder / "bundle", Cache(folder / "cache"))
    parts = parts_of(load_model(folder / "bundle", "lm", threads=1, batch=4))
    yield parts
    parts.models.close()


def body(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "prompt": "the cat", "temperature": 0, "max_tokens": 8, **more}


def expected(parts: ServerParts, name: str | None) -> str:
    text: str = parts.models.text("lm")[0].session.generate("the cat", max_tokens=8, adapter=name).text
    return text


def test_they_are_models(kept: ServerParts) -> None:
    cards = {each["id"]: each for each in ask(kept, "/v1/models").json()["data"]}
    assert [*cards] == ["lm", "lm@dense", "lm:sql", "lm:sql@dense", "lm:chat", "lm:chat@dense"]
    assert (cards["lm:sql"]["parent"], cards["lm:sql"]["root"]) == ("lm", "sql")
    assert "parent" not in cards["lm"]
    assert cards["lm"]["adaptc"]["adapters"] == ["sql", "chat"]
    assert cards["lm:chat@dense"]["adaptc"]["adapter"] == "chat"
    assert ask(kept, "/v1/models/lm:chat").json()["parent"] == "lm"


def test_a_name_or_a_field_chooses_one(kept: ServerParts) -> None:
    texts = {name: expected(kept, name) for name in (None, "sql", "chat")}
    assert len({*texts.values()}) == 3
    for model, controls, name in (
        ("lm", {}, None),
        ("lm:sql", {}, "sql"),
        ("lm:chat@dense", {}, "chat"),
        ("lm", {"adapter": "sql"}, "sql"),
        ("lm:sql", {"adapter": "chat"}, "chat"),
    ):
        answer = ask(kept, COMPLETE, body(model, adaptc=controls)).json()
        assert answer["choices"][0]["text"] == texts[name]
        assert answer["model"] == model
        assert answer["adaptc"].get("adapter") == name
    pieces = events(ask(kept, COMPLETE, body("lm:sql", stream=True)))
    assert "".join(each["choices"][0]["text"] for each in pieces if each["choices"]) == texts["sql"]


def test_requests_at_once_have_their_own(kept: ServerParts) -> None:
    names = [None, "sql", "chat", "sql"]
    wanted = [expected(kept, name) for name in names]

    async def all_of() -> list[str]:
        calls = (ask_async(kept, COMPLETE, body("lm" if name is None else f"lm:{name}")) for name in names)
        return [each.json()["choices"][0]["text"] for each in await asyncio.gather(*calls)]

    assert asyncio.run(all_of()) == wanted


def test_an_echo_has_the_adapters_scores(kept: ServerParts) -> None:
    session = kept.models.text("lm")[0].session
    assert session.tokenizer is not None
    ids = session.tokenizer.encode("the cat")
    found = {}
    for model, name in (("lm", None), ("lm:sql", "sql")):
        asked = body(model, prompt=[ids], echo=True, logprobs=1, max_tokens=0)
        found[name] = ask(kept, COMPLETE, asked).json()["choices"][0]["logprobs"]["token_logprobs"][1:]
        assert found[name] == pytest.approx(session.score(ids, adapter=name).values.tolist(), abs=1e-5)
    assert found[None] != found["sql"]


def test_metrics_count_them(kept: ServerParts) -> None:
    ask(kept, COMPLETE, body("lm:chat"))
    assert 'adaptc:adapter_total{model_name="lm",adapter="chat"}' in ask(kept, "/metrics").text


def test_names_that_are_not_there(kept: ServerParts) -> None:
    for model, message in (
        ("lm:nosql", "model: no adapter 'nosql'; there are: lm:sql, lm:chat"),
        ("lm:", "model: no adapter ''; there are: lm:sql, lm:chat"),
        ("lm:sql@fast", "model: no policy 'fast'; there are: lm@dense"),
        ("other:sql", "model: no model 'other:sql'; there are: lm"),
    ):
        answer = ask(kept, COMPLETE, body(model))
        assert answer.status_code == 404
        assert error_of(answer)["message"] == message
    answer = ask(kept, COMPLETE, body("lm", adaptc={"adapter": "nosql"}))
    assert answer.status_code == 400
    assert error_of(answer)["message"] == "adapter: no adapter 'nosql'; there are: sql, chat"
    assert "has none" in error_of(ask(parts_of(by_hand()), COMPLETE, body("hand:sql")))["message"]


def test_a_bundle_called_like_an_adapter_is_refused(kept: ServerParts, tmp_path: Path) -> None:
    [model] = kept.models.by_name.values()
    with pytest.raises(RequestError, match=r"^serve: 'lm:sql' is a bundle, and an adapter of lm; NAME=BUNDLE renames$"):
        Models([model, by_hand("lm:sql")])


def test_the_document_has_the_field(kept: ServerParts) -> None:
    assert '"adapter"' in ask(kept, "/openapi.json").text
