"""What the server says of itself: its models, its health, its metrics and its OpenAPI document."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from adaptc.runtime.server.endpoints.parts import parts_of
from adaptc.runtime.server.observing.prometheus import CONTENT_TYPE
from adaptc.runtime.server.protocol.errors import ApiError, unavailable
from adaptc.runtime.server.protocol.openapi import document
from adaptc.runtime.server.protocol.responses import Json
from adaptc.runtime.server.serving.models import EncoderModel, Model, Policy, TextModel
from adaptc.runtime.validation import shown


async def models(request: Request) -> Response:
    """All models, and each with each of its adapters and policies."""
    return Json({"object": "list", "data": list(_cards(parts_of(request).models.by_name).values())})


async def model(request: Request) -> Response:
    """One of them."""
    cards = _cards(parts_of(request).models.by_name)
    name = request.path_params["name"]
    if name not in cards:
        raise ApiError(404, f"model: no model {shown(name)}; there are: {', '.join(cards)}", code="model_not_found")
    return Json(cards[name])


async def health(_: Request) -> Response:
    """Whether the process answers."""
    return Json({"status": "ok"})


async def ready(request: Request) -> Response:
    """Whether it takes requests."""
    if parts_of(request).entrance.draining:
        raise unavailable("server: it is ending and takes no further request")
    return Json({"status": "ready"})


async def metrics(request: Request) -> Response:
    """What was counted, for Prometheus."""
    return Response(parts_of(request).metrics.text(), media_type=CONTENT_TYPE)


async def openapi(request: Request) -> Response:
    """The OpenAPI document."""
    return Json(document(ui=parts_of(request).settings.ui))


def _cards(known: dict[str, Model]) -> dict[str, dict[str, Any]]:
    cards = {}
    for name, each in known.items():
        for adapter in (None, *each.adapters):
            own = name if adapter is None else f"{name}:{adapter}"
            cards[own] = _card(own, each, Policy(adapter=adapter))
            for suffix, policy in each.policies.items():
                cards[f"{own}@{suffix}"] = _card(f"{own}@{suffix}", each, replace(policy, adapter=adapter))
    return cards


def _card(id_: str, known: Model, policy: Policy) -> dict[str, Any]:
    kinds = {TextModel: "text", EncoderModel: "embeddings"}
    facts: dict[str, Any] = {"kind": kinds.get(type(known), "inputs")}
    if isinstance(known, TextModel):
        facts |= {"budget": policy.budget, "route": policy.route, "routes": list(known.session.routes)}
        facts |= {"adapter": policy.adapter, "adapters": list(known.adapters)}
    card: dict[str, Any] = {"id": id_, "object": "model", "created": known.created, "owned_by": "adaptc"}
    if policy.adapter is not None:
        card |= {"root": policy.adapter, "parent": known.name}
    if isinstance(known, TextModel):
        card["max_model_len"] = known.max_tokens
    if isinstance(known, EncoderModel):
        card["max_model_len"] = known.session.max_tokens
    return {**card, "adaptc": facts}
