"""What the server counts, and the text in which Prometheus reads it."""

from __future__ import annotations

import pytest

from adaptc.runtime.server.observing.prometheus import Gauge, Histogram, Metric, exposition
from tests.models.routed_lm import RoutedLm
from tests.server.served import SPEC, ask, by_hand, classifier, message, parts_of

parser = pytest.importorskip("prometheus_client.parser")


def numbers(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample, as Prometheus' own client reads it."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_are_counted() -> None:
    parts = parts_of(by_hand())
    for _ in range(2):
        ask(parts, "/v1/chat/completions", {"messages": message("x"), "max_tokens": 3, "temperature": 0})
    ask(parts, "/v1/chat/completions", {})
    found = numbers(ask(parts, "/metrics").text)
    model = ("model_name", "hand")
    assert found["adaptc:request_success_total", (("finished_reason", "length"), model)] == 2
    assert found["adaptc:generation_tokens_total", (model,)] == 6
    assert found["adaptc:time_to_first_token_seconds_count", (model,)] == 2
    assert found["adaptc:time_per_output_token_seconds_bucket", (("le", "+Inf"), model)] == 2
    assert found["adaptc:e2e_request_latency_seconds_sum", (model,)] > 0
    assert found["adaptc:num_requests_running", (model,)] == 0
    assert found["adaptc:http_requests_total", (("endpoint", "/v1/chat/completions"), ("status", "400"))] == 1


def test_routes_and_modalities_are_counted() -> None:
    routed = RoutedLm(SPEC)
    parts = parts_of(by_hand("routed", session=routed.session()), classifier())
    body = {"model": "routed@cheap", "prompt": [3, 1, 4], "max_tokens": 2, "temperature": 0}
    answer = ask(parts, "/v1/completions", body).json()
    assert answer["adaptc"]["route"] == "cheap"
    ask(parts, "/v1/infer", {"model": "views", "inputs": {"cheap": [[1, 2, 3]]}})
    found = numbers(ask(parts, "/metrics").text)
    assert found["adaptc:route_total", (("model_name", "routed"), ("route", "cheap"))] == 1
    assert found["adaptc:modality_dropped_total", (("modality", "dear"), ("model_name", "views"))] == 1


def test_the_text_is_read_back_by_prometheus_own_client() -> None:
    counter = Metric("a:c_total", "A counter.", ("x",))
    counter.add(2, 'quo"te\nline\\')
    counter.add(0.5, "é")
    histogram = Histogram("a:h_seconds", "A histogram.", (0.1, 1.0))
    for value in (0.1, 0.5, 7):
        histogram.observe(value)
    gauge = Gauge("a:g", "A gauge.", lambda: [((), 0.25)])
    found = numbers(exposition([counter, histogram, gauge, Metric("a:z_total", "Nothing.")]))
    assert found["a:c_total", (("x", 'quo"te\nline\\'),)] == 2
    assert found["a:c_total", (("x", "é"),)] == 0.5
    assert [found["a:h_seconds_bucket", (("le", le),)] for le in ("0.1", "1.0", "+Inf")] == [1, 2, 3]
    assert (found["a:h_seconds_sum", ()], found["a:h_seconds_count", ()]) == (7.6, 3)
    assert (found["a:g", ()], found["a:z_total", ()]) == (0.25, 0)
