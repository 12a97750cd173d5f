"""`/ui`: a page that shows what the server does, and the numbers that it shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.requests import Request
from starlette.responses import Response

from adaptc.runtime.server.endpoints.parts import ServerParts, parts_of
from adaptc.runtime.server.observing.recent import LastInputs, LastWritten, Times
from adaptc.runtime.server.protocol.errors import ApiError
from adaptc.runtime.server.protocol.responses import Json
from adaptc.runtime.server.serving.models import EncoderModel, InputModel, Model, TextModel
from adaptc.runtime.server.ui.files import KINDS, PAGE, file_response
from adaptc.runtime.validation import shown

_PERCENTS = (50, 95, 99)


async def page(_: Request) -> Response:
    """The page."""
    return file_response(PAGE)


async def file(request: Request) -> Response:
    """A file of the page."""
    name = request.path_params["file"]
    if name not in KINDS or name == PAGE:
        raise ApiError(404, f"ui: no file {shown(name)}; /ui names all that it needs")
    return file_response(name)


async def state(request: Request) -> Response:
    """What the page shows: numbers of all models, and no text of anybody."""
    parts, text = parts_of(request), request.query_params.get("seen", "0")
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise ApiError(
            400, f"seen: {shown(text)}; the largest number of a request that is known is needed", param="seen"
        )
    models = [_model(parts, each, int(text)) for each in parts.models.by_name.values()]
    refused = dict(parts.entrance.refused)
    told = {
        "now": parts.recent.clock(),
        "started": parts.recent.started,
        "draining": parts.entrance.draining,
        "refused": refused,
        "models": models,
    }
    return Json(told, headers={"Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin"})


def _model(parts: ServerParts, model: Model, seen: int) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": model.name,
        "kind": "text" if isinstance(model, TextModel) else "inputs",
        "inside": parts.entrance.inside(model.name),
        "minute": _minute(parts.recent.minute(model.name)),
        "last": _last(parts, model.name, seen),
    }
    if isinstance(model, EncoderModel):
        return facts | {"chat": None, "dropped": {}}
    return facts | (_text(parts, model) if isinstance(model, TextModel) else _inputs(parts, model))


def _text(parts: ServerParts, model: TextModel) -> dict[str, Any]:
    session, now = model.session, model.session.status()
    gates, tokenizer = session.gates, session.tokenizer
    metrics, named = parts.metrics, (model.name,)
    routes = metrics.values("adaptc:route_total")
    return {
        "chat": None if tokenizer is None else "messages" if tokenizer.takes_chats else "prompt",
        "max_tokens": model.max_tokens,
        "batch": model.batch,
        "takes_budget": session.takes_budget,
        "budget": None if gates is None else gates.budget,
        "budget_ceiling": now.budget_ceiling if session.takes_budget else None,
        "pressure": now.pressure,
        "budget_lowered": metrics.lowered.value(*named),
        "gates": None if gates is None else {"layers": list(gates.layers), "blocks": gates.blocks},
        "routes": {route: int(routes.get((*named, route), 0)) for route in session.routes},
        "running": now.running,
        "waiting": now.waiting,
        "kv_tokens": now.kv_tokens,
        "kv_capacity": now.kv_capacity,
        "prompt_tokens": now.prefix_query_tokens,
        "known_tokens": now.prefix_hit_tokens,
        "read_tokens": now.read_tokens,
        "written_tokens": now.written_tokens,
        "preemptions": now.preemptions,
    }


def _inputs(parts: ServerParts, model: InputModel) -> dict[str, Any]:
    dropped = parts.metrics.values("adaptc:modality_dropped_total")
    modalities = {name: int(dropped.get((model.name, name), 0)) for name in model.session.modal.modalities}
    return {"chat": None, "dropped": modalities}


def _minute(times: Sequence[Times]) -> dict[str, Any]:
    """How many requests ended in the last minute, and percentiles of their times in milliseconds."""
    skipped = [each.skipped for each in times if each.skipped is not None]
    return {
        "requests": len(times),
        "first_ms": _percentiles([each.first for each in times if each.first is not None]),
        "each_ms": _percentiles([each.each for each in times if each.each is not None]),
        "whole_ms": _percentiles([each.whole for each in times]),
        "ffn_skipped": round(float(np.mean(skipped)), 4) if skipped else None,
    }


def _percentiles(seconds: Sequence[float]) -> list[float] | None:
    return [round(each * 1e3, 3) for each in np.percentile(seconds, _PERCENTS).tolist()] if seconds else None


def _last(parts: ServerParts, model: str, seen: int) -> dict[str, Any] | None:
    """The model's newest request; which blocks it skipped only if it is not known yet."""
    last = parts.recent.last.get(model)
    if last is None:
        return None
    facts: dict[str, Any] = {
        "number": last.number,
        "ended": last.times.ended,
        "whole_ms": round(last.times.whole * 1e3, 3),
    }
    if isinstance(last, LastInputs):
        return {**facts, "modalities": [list(each) for each in last.modalities], "accuracy": last.accuracy}
    if last.number > seen and last.ran is not None:
        facts["skipped_by_gate"] = _by_gate(last.ran)
    return {**facts, **_written(last)}


def _written(last: LastWritten) -> dict[str, Any]:
    times = last.times
    return {
        "first_ms": None if times.first is None else round(times.first * 1e3, 3),
        "each_ms": None if times.each is None else round(times.each * 1e3, 3),
        "budget": last.budget,
        "lowered_to": last.lowered_to,
        "routes": [list(each) for each in last.routes],
        "finish_reason": last.finish_reason,
        "prompt_tokens": last.prompt_tokens,
        "cached_tokens": last.cached_tokens,
        "new_tokens": last.new_tokens,
        "ffn_skipped": None if times.skipped is None else round(times.skipped, 4),
    }


def _by_gate(ran: npt.NDArray[np.bool_]) -> list[str]:
    """For each gate a text with a character for each token: 1 if its block was skipped, else 0."""
    letters = np.where(ran, ord("0"), ord("1")).astype(np.uint8)
    return [column.tobytes().decode("ascii") for column in letters.T.copy()]
