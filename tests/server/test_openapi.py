"""The OpenAPI document: what it admits is answered, what it does not is refused, and nothing is a server's error."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from adaptc.runtime.server.app import ROUTES, application
from adaptc.runtime.server.protocol.openapi import document
from tests.models.routed_lm import RoutedLm
from tests.server.served import SPEC, by_hand, classifier, parts_of

schemathesis = pytest.importorskip("schemathesis")

PARTS = parts_of(
    by_hand(), by_hand("routed", session=RoutedLm(SPEC).session()), classifier(), max_tokens=4, allowed_hosts=("*",)
)
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", application(PARTS))
EXAMPLES = 20
QUICK = settings(
    deadline=None,
    derandomize=True,
    max_examples=EXAMPLES,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@SCHEMA.parametrize()  # type: ignore[untyped-decorator]
@QUICK
def test_nothing_that_the_document_admits_is_an_error_of_the_server(case: Any) -> None:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

    if isinstance(case.body, dict) and isinstance(case.body.get("model", ""), str):
        # Else most bodies would be refused for their model alone.
        case.body["model"] = "views" if case.path.startswith(("/v1/infer", "/v1/jobs")) else "hand"
    case.call_and_validate(checks=[not_a_server_error, content_type_conformance, response_schema_conformance])


@pytest.mark.parametrize(
    ("path", "asked"),
    [("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})],
)
def test_events_are_those_of_the_document(path: str, asked: dict[str, Any]) -> None:
    case = SCHEMA[path]["POST"].Case(body={"model": "hand", "max_tokens": 3, "stream": True} | asked)
    received = case.call_and_validate()
    assert received.headers["content-type"][0].startswith("text/event-stream")
    assert received.text.count("data: ") > 2


def test_every_path_is_in_the_document() -> None:
    known = {(path, method) for path, methods in document()["paths"].items() for method in methods}
    there = {
        (route.path.replace(":path", ""), method.lower())
        for route in ROUTES
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert known == there
