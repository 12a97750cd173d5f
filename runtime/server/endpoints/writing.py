"""What chats and completions have in common: a request that writes, its choices of tokens, and what is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from starlette.requests import Request

from adaptc.runtime.generation.result import Result
from adaptc.runtime.generation.stream import AsyncStream
from adaptc.runtime.server.endpoints.parts import ServerParts, note
from adaptc.runtime.server.observing.metrics import Metrics
from adaptc.runtime.server.observing.recent import Recent
from adaptc.runtime.server.protocol.errors import ApiError
from adaptc.runtime.server.protocol.options import options_of
from adaptc.runtime.server.serving.models import Policy, TextModel
from adaptc.runtime.text.logprobs import LogprobRecord, TokenLogprob
from adaptc.runtime.text.tokenizer import Tokenizer

FINISH = {"eos": "stop", "stop": "stop", "length": "length", "deadline": "length", "cancelled": "length"}
"""OpenAI's word for why a text ended; `adaptc.finish_reason` has ours."""

LEAST_LOGPROB = -9999.0
"""What JSON has in the place of minus infinity."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One text that is being written.

    Attributes:
        model: The model's name.
        stream: Its pieces and, at the end, its result.
        record: How probable its tokens were; None if nobody asked.
        budget: The budget that was asked for.
        began: `perf_counter` when the request was made.
        metrics: Where it is counted.
        recent: What shows it while it is recent.
        layers: The layers of the model's gates.
        skips: Whether the client wants to know the skipped blocks of each token.
    """

    model: str
    stream: AsyncStream
    record: LogprobRecord | None
    budget: float | None
    began: float
    metrics: Metrics
    recent: Recent
    layers: tuple[int, ...]
    skips: bool

    def finish(self) -> Result:
        """The result, once the stream has ended; it is counted."""
        result, seconds = self.stream.result, perf_counter() - self.began
        self.metrics.count(self.model, result, seconds, self.layers)
        self.recent.wrote(self.model, result, seconds, self.budget)
        return result

    def length(self, result: Result) -> int:
        """The number of tokens of the text, without the end token."""
        return len(result.ids) - (result.finish_reason == "eos")

    def tokens(self, first: int, end: int) -> list[TokenLogprob]:
        """How probable some tokens of the text were."""
        assert self.record is not None
        return self.record.tokens[first:end]

    def skipped(self, first: int, end: int) -> list[str | None]:
        """The blocks that tokens skipped: for each gate 1 if its block was, else 0; None where none could be."""
        steps = [self.stream.ran(token) for token in range(first, end)]
        return [None if ran is None else "".join("0" if each else "1" for each in ran) for ran in steps]

    def told(self, first: int, end: int) -> dict[str, Any]:
        """What a chunk says of its tokens beside their text, if the client wants to know."""
        return {"adaptc": {"skipped_by_token": self.skipped(first, end)}} if self.skips else {}


def writing_options(
    parts: ServerParts, model: TextModel, policy: Policy, body: dict[str, Any], max_tokens: int
) -> dict[str, Any]:
    """The options of a request for a model and its policy; what the body says comes first.

    Raises:
        ApiError: a field asks for what is not there.
    """
    settings = parts.settings
    options = options_of(body, max_tokens, settings.max_tokens, settings.max_seconds, model.vocab)
    if policy.budget is not None and "max_loss" not in options:
        options.setdefault("budget", policy.budget)
    if policy.route is not None:
        options.setdefault("route", policy.route)
    if policy.adapter is not None:
        options.setdefault("adapter", policy.adapter)
    return options


def check_length(model: TextModel, texts: Iterable[str], param: str) -> None:
    """Refuse what is too long before it costs time to find out how long it is.

    Raises:
        ApiError: it is.
    """
    length = sum(map(len, texts))
    if length > model.max_characters > 0:
        raise ApiError(
            400,
            f"{param}: {length} characters; this bundle holds {model.max_tokens} tokens, "
            f"and even {model.max_characters} characters are more",
            code="context_length_exceeded",
            param=param,
        )


async def begin(
    parts: ServerParts,
    model: TextModel,
    make: Callable[..., AsyncStream],
    options: dict[str, Any],
    stack: AsyncExitStack,
    top: int | None,
    skips: bool,
) -> Answer:
    """Make a request; reading its prompt and rendering its chat take place in a thread, so that others go on.

    Args:
        parts: The server's.
        model: Writes the text.
        make: `Session.generate_async` or `chat_async`, with the prompt.
        options: Of the request.
        stack: Ends the request when it is closed.
        top: The number of likely tokens to record beside each token; None records nothing.
        skips: Whether the client wants to know the skipped blocks of each token.

    Raises:
        AdaptcError: the request is wrong.
    """
    began = perf_counter()
    record = None if top is None else LogprobRecord(top)
    if record is not None:
        options = options | {"rules": [lambda: record, *options.get("rules", ())]}
    stream = await asyncio.to_thread(partial(make, **options))
    stack.push_async_callback(stream.aclose)
    gates = model.session.gates
    layers = () if gates is None else tuple(gates.layers)
    budget = options.get("budget")
    return Answer(model.name, stream, record, budget, began, parts.metrics, parts.recent, layers, skips)


def wants_usage(body: dict[str, Any]) -> bool:
    """Whether the events of an answer end with what it used."""
    return bool((body.get("stream_options") or {}).get("include_usage"))


def wants_skips(body: dict[str, Any]) -> bool:
    """Whether an answer tells the skipped blocks of each token."""
    return bool((body.get("adaptc") or {}).get("skips"))


def usage_of(results: list[Result]) -> dict[str, Any]:
    """What requests used, as OpenAI counts it."""
    prompt = sum(each.prompt_tokens for each in results)
    written = sum(len(each.ids) for each in results)
    cached = sum(each.trace.cached_tokens for each in results)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def trace_of(answer: Answer, result: Result, told: int = 0) -> dict[str, Any]:
    """What was decided for a request, and where its time went: the field `adaptc` of an answer.

    Args:
        answer: The answer.
        result: What it gave.
        told: The number of tokens whose skipped blocks were told before.
    """
    trace = result.trace
    facts: dict[str, Any] = {
        "finish_reason": result.finish_reason,
        "budget": answer.budget,
        "lowered_to": trace.lowered_to,
        "cached_tokens": trace.cached_tokens,
        "prefill_ms": round(trace.prefill_seconds * 1e3, 3),
        "decode_ms": round(trace.decode_seconds * 1e3, 3),
        "time_to_first_token_ms": round(trace.time_to_first_token_seconds * 1e3, 3),
        "total_ms": round((perf_counter() - answer.began) * 1e3, 3),
    }
    if trace.drafter is not None:
        facts |= {"drafter": trace.drafter, "drafted": trace.drafted, "accepted": trace.accepted}
    if trace.adapter is not None:
        facts["adapter"] = trace.adapter
    if trace.routes:
        facts["route"] = trace.route
        facts["routes"] = [[first, route] for first, route in trace.routes]
    if trace.skips is not None:
        ran = trace.skips.ran
        facts["ffn_skipped"] = round(trace.ffn_skipped, 4)
        facts["skipped_by_layer"] = {
            str(layer): round(1 - float(ran[:, place].mean()), 4)
            for place, layer in enumerate(answer.layers)
            if len(ran)
        }
    if answer.skips:
        facts["skipped_by_token"] = answer.skipped(told, len(result.ids))
    return facts


def note_result(request: Request, answer: Answer, results: list[Result]) -> None:
    """Put a request's numbers into its line in the log."""
    note(
        request,
        model=answer.model,
        prompt_tokens=sum(each.prompt_tokens for each in results),
        new_tokens=sum(len(each.ids) for each in results),
        finish_reason=",".join(dict.fromkeys(each.finish_reason for each in results)),
    )


def token_text(tokenizer: Tokenizer | None, token: int) -> str:
    """A token as the API shows it: its text, or its bytes if they make no character."""
    if tokenizer is None:
        return f"token_id:{token}"
    content = tokenizer.token_bytes(token)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
