"""The metrics of a server; names and bounds are vLLM's where it has the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from adaptc.runtime.generation.result import Result
from adaptc.runtime.server.observing.prometheus import Gauge, Histogram, Labels, Metric, exposition

_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_EACH = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_WHOLE = (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)

Read = Callable[[], Iterable[tuple[Labels, float]]]


class Metrics:
    """What a server counts."""

    def __init__(self) -> None:
        """Start at 0."""
        by_model = ("model_name",)
        self.http = Metric("adaptc:http_requests_total", "Answers, by endpoint and status.", ("endpoint", "status"))
        self.succeeded = Metric(
            "adaptc:request_success_total", "Requests that were answered.", ("model_name", "finished_reason")
        )
        self.prompt_tokens = Metric("adaptc:prompt_tokens_total", "Tokens of prompts.", by_model)
        self.generation_tokens = Metric("adaptc:generation_tokens_total", "Tokens that were written.", by_model)
        self.first = Histogram(
            "adaptc:time_to_first_token_seconds", "From a request to its first token.", _FIRST, by_model
        )
        self.each = Histogram(
            "adaptc:time_per_output_token_seconds", "Mean time of the tokens after the first.", _EACH, by_model
        )
        self.whole = Histogram("adaptc:e2e_request_latency_seconds", "Time of a request.", _WHOLE, by_model)
        self.routes = Metric("adaptc:route_total", "Requests by the route that wrote last.", ("model_name", "route"))
        self.adapters = Metric(
            "adaptc:adapter_total", "Requests by the adapter that they had.", ("model_name", "adapter")
        )
        self.dropped = Metric(
            "adaptc:modality_dropped_total", "Rows whose answer left out a modality.", ("model_name", "modality")
        )
        self.lowered = Metric("adaptc:budget_lowered_total", "Requests whose budget was lowered under load.", by_model)
        self.drafted = Metric(
            "adaptc:spec_decode_num_draft_tokens_total", "Tokens that were guessed and verified.", by_model
        )
        self.accepted = Metric(
            "adaptc:spec_decode_num_accepted_tokens_total", "Guessed tokens that were right.", by_model
        )
        self._blocks: dict[Labels, list[float]] = {}
        self._metrics: list[Metric] = [
            *(self.http, self.succeeded, self.prompt_tokens, self.generation_tokens),
            *(self.first, self.each, self.whole, self.routes, self.adapters, self.dropped, self.lowered),
            *(self.drafted, self.accepted),
            Gauge(
                "adaptc:ffn_skip_ratio",
                "Share of a layer's feed-forward blocks that were skipped since the start.",
                self._skips,
                ("model_name", "layer"),
            ),
        ]

    def read(
        self, name: str, help_: str, read: Read, kind: str = "gauge", labels: tuple[str, ...] = ("model_name",)
    ) -> None:
        """Add a number that is asked for when it is read, in place of the one of this name."""
        self._metrics = [each for each in self._metrics if each.name != name]
        self._metrics.append(Gauge(name, help_, read, labels, kind))

    def count(self, model: str, result: Result, seconds: float, layers: Iterable[int] = ()) -> None:
        """Take a result into account.

        Args:
            model: Its name.
            result: What it gave.
            seconds: Time of the request.
            layers: The layers of its gates, in their order.
        """
        trace = result.trace
        self.succeeded.add(1, model, result.finish_reason)
        self.prompt_tokens.add(trace.prompt_tokens, model)
        self.generation_tokens.add(trace.new_tokens, model)
        self.whole.observe(seconds, model)
        if trace.new_tokens:
            self.first.observe(trace.time_to_first_token_seconds, model)
        if (each := trace.time_per_output_token_seconds) is not None:
            self.each.observe(each, model)
        if trace.drafter is not None:
            self.drafted.add(trace.drafted, model)
            self.accepted.add(trace.accepted, model)
        if trace.lowered_to is not None:
            self.lowered.add(1, model)
        if trace.route is not None:
            self.routes.add(1, model, trace.route)
        if trace.adapter is not None:
            self.adapters.add(1, model, trace.adapter)
        if trace.skips is not None and len(trace.skips.ran):
            ran = np.asarray(trace.skips.ran)
            for place, layer in enumerate(layers):
                blocks = self._blocks.setdefault((model, str(layer)), [0.0, 0.0])
                blocks[0] += len(ran) - float(ran[:, place].sum())
                blocks[1] += len(ran)

    def values(self, name: str) -> dict[Labels, float]:
        """The numbers of a metric by its labels; none if there is no such metric."""
        return {labels: value for each in self._metrics if each.name == name for labels, value in each.values().items()}

    def text(self) -> str:
        """All metrics as Prometheus reads them."""
        return exposition(self._metrics)

    def _skips(self) -> Iterable[tuple[Labels, float]]:
        return [(labels, skipped / blocks) for labels, (skipped, blocks) in self._blocks.items()]
