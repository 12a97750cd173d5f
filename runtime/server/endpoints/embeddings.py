"""`/v1/embeddings`: vectors of texts, in OpenAI's form."""

from __future__ import annotations

import asyncio
import base64
from time import monotonic
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from adaptc.runtime.encoding.session import EncoderSession, Floats
from adaptc.runtime.server.endpoints.parts import body_of, note, parts_of, stack_of
from adaptc.runtime.server.protocol.errors import ApiError
from adaptc.runtime.server.protocol.responses import Json, unless_gone
from adaptc.runtime.server.protocol.schemas import EMBEDDINGS


async def embed(request: Request) -> Response:
    """Make a vector of each text."""
    parts = parts_of(request)
    body = await body_of(request, EMBEDDINGS)
    model = parts.models.encoder(body.get("model"), "/v1/embeddings")
    note(request, model=model.name)
    stack_of(request).enter_context(parts.entrance.place(model.name, 1))
    width, wanted = model.session.width, body.get("dimensions")
    if wanted is not None and wanted != width:
        raise ApiError(400, f"dimensions: {wanted}; {model.name} gives {width}: leave it out", param="dimensions")
    began = monotonic()
    vectors, tokens = await unless_gone(request, asyncio.to_thread(_embedded, model.session, body))
    parts.recent.answered(model.name, monotonic() - began, (), None)
    packed = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if packed else vector.tolist()}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Json({"object": "list", "data": data, "model": model.name, "usage": usage})


def _embedded(session: EncoderSession, body: dict[str, Any]) -> tuple[Floats, int]:
    """The vectors, float32 [texts, width], and the tokens of all texts."""
    controls = body.get("adaptc") or {}
    rows = session.read(body["input"], prompt=controls.get("prompt"), truncate=bool(controls.get("truncate")))
    return session.run(rows), sum(len(row.ids) for row in rows)


def _base64(vector: Floats) -> str:
    """A vector's bytes, little-endian float32."""
    return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
