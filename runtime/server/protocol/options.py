"""From the fields of a body to the options of a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptc.runtime.server.protocol.errors import ApiError

_SAME = (
    *("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("stop_token_ids", "priority"),
)
_NEUTRAL = {"temperature": 1.0}
"""What the API takes where a field is left out, if it is not what the session takes."""


def options_of(
    body: Mapping[str, Any], max_tokens: int, most: int | None, max_seconds: float, vocab: int
) -> dict[str, Any]:
    """The keyword arguments of `Session.generate_async`.

    Args:
        body: Checked against its schema.
        max_tokens: The number of tokens to write if the body does not say.
        most: The largest number that it may say; None for any.
        max_seconds: The longest time of a request.
        vocab: Width of the logits.

    Raises:
        ApiError: a field asks for what is not there.
    """
    _refuse(body)
    options: dict[str, Any] = {"max_tokens": max_tokens if most is None else min(max_tokens, most)}
    for name in ("max_completion_tokens", "max_tokens"):
        if name in body:
            options["max_tokens"] = body[name]
            if most is not None and body[name] > most:
                raise ApiError(400, f"{name}: {body[name]}; this server writes at most {most}", param=name)
    if body.get("max_tokens", options["max_tokens"]) != options["max_tokens"] and "max_completion_tokens" in body:
        raise ApiError(
            400, "max_tokens: another number than max_completion_tokens; one of them is needed", param="max_tokens"
        )
    options |= _NEUTRAL | {name: body[name] for name in _SAME if name in body}
    if body.get("top_k", 0) > 0:
        options["top_k"] = body["top_k"]
    if body.get("min_tokens"):
        options["min_new_tokens"] = min(body["min_tokens"], 1 << 40)
    if body.get("stop"):
        options["stop"] = body["stop"]
    if "seed" in body:
        options["seed"] = body["seed"] % (1 << 64)
    if "logit_bias" in body:
        options["logit_bias"] = _biases(body["logit_bias"], vocab)
    controls = body.get("adaptc") or {}
    for name in ("budget", "max_loss", "min_budget", "route", "adapter", "speculate", "modalities"):
        if controls.get(name) is not None:
            options[name] = controls[name]
    if controls.get("accuracy") is not None:
        raise ApiError(
            400,
            "adaptc.accuracy: for bundles that answer inputs (/v1/infer); adaptc.budget is for text",
            param="adaptc.accuracy",
        )
    deadline = controls.get("deadline_ms")
    options["deadline"] = max_seconds if deadline is None else min(max_seconds, deadline / 1e3)
    return options


def _refuse(body: Mapping[str, Any]) -> None:
    if body.get("n", 1) != 1:
        raise ApiError(
            400, f"n: {body['n']}; one answer is written for each prompt: ask several times, with seeds", param="n"
        )
    if body.get("best_of", 1) != 1:
        raise ApiError(400, f"best_of: {body['best_of']}; answers are not ranked: leave it out", param="best_of")
    if body.get("suffix"):
        raise ApiError(400, "suffix: text is only continued, never filled in; leave it out", param="suffix")
    if body.get("store"):
        raise ApiError(400, "store: true; nothing is stored here: leave it out", param="store")
    if body.get("parallel_tool_calls") is False:
        raise ApiError(
            400,
            "parallel_tool_calls: false; how many tools are called is the model's: leave it out",
            param="parallel_tool_calls",
        )
    if "include_usage" in (body.get("stream_options") or {}) and not body.get("stream"):
        raise ApiError(400, "stream_options: only with stream: true", param="stream_options")


def _biases(given: Mapping[str, float], vocab: int) -> dict[int, float]:
    biases = {}
    for name, bias in given.items():
        if not (name.isascii() and name.isdigit() and len(name) < 11 and int(name) < vocab):
            raise ApiError(
                400, f"logit_bias: {name[:20]!r}; token ids from 0 to {vocab - 1} are needed", param="logit_bias"
            )
        biases[int(name)] = bias
    return biases
