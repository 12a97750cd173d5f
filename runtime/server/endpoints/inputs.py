"""`/v1/infer` and `/v1/jobs`: models that answer each input from the modalities that are worth their time."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping
from time import monotonic
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from adaptc.runtime.backends.engine import Array
from adaptc.runtime.bundle.manifest import TensorSpec
from adaptc.runtime.errors import AdaptcError
from adaptc.runtime.server.endpoints.parts import body_of, note, parts_of, stack_of
from adaptc.runtime.server.protocol.errors import ApiError, api_error
from adaptc.runtime.server.protocol.responses import Json, unless_gone
from adaptc.runtime.server.protocol.schemas import INFER, JOB
from adaptc.runtime.server.serving.jobs import Jobs, KeptJob
from adaptc.runtime.server.serving.models import InputModel
from adaptc.runtime.validation import shown


async def infer(request: Request) -> Response:
    """Process inputs now."""
    parts = parts_of(request)
    body = await body_of(request, INFER)
    model = parts.models.inputs(body.get("model"), "/v1/infer")
    note(request, model=model.name)
    stack_of(request).enter_context(parts.entrance.place(model.name, 1))
    asked = {name: body.get(name) for name in ("accuracy", "deadline_ms", "modalities")}
    inputs = _inputs(model, body["inputs"])
    done = await unless_gone(request, asyncio.to_thread(model.session.infer, inputs, **asked))
    trace = done.trace
    _count(request, model, trace.modalities, trace.ms / 1e3, trace.accuracy)
    return Json(
        {
            "model": model.name,
            "outputs": _listed(done.outputs),
            "adaptc": {
                "option": trace.option,
                "modalities": [list(each) for each in trace.modalities],
                "accuracy": trace.accuracy,
                "confidence": None if trace.confidence is None else list(trace.confidence),
                "predicted_ms": trace.predicted_ms,
                "ms": round(trace.ms, 3),
            },
        }
    )


async def submit(request: Request) -> Response:
    """Queue a job; 409 if its deadline cannot be kept, or an accepted job's with it."""
    came = monotonic()
    parts = parts_of(request)
    body = await body_of(request, JOB)
    model = parts.models.inputs(body.get("model"), "/v1/jobs")
    note(request, model=model.name)
    with parts.entrance.place(model.name, Jobs.MOST):
        asked: dict[str, Any] = {name: body[name] for name in ("accuracy", "deadline_ms") if name in body}
        inputs = _inputs(model, body["inputs"])
        id_, ticket = await asyncio.to_thread(parts.jobs.submit, model, inputs, asked, came)
    if not ticket.admission.accepted:
        raise ApiError(
            409, f"job: refused: {ticket.admission.why}", code="deadline_cannot_be_kept", param="deadline_ms"
        )
    return Json(_told(request, id_, KeptJob(model, ticket, monotonic())), 202)


async def job(request: Request) -> Response:
    """The state of a job, with its outputs once it has ended."""
    return Json(_told(request, *_known(request)))


async def forget(request: Request) -> Response:
    """Forget a job; what runs of it runs to its end."""
    id_, _ = _known(request)
    parts_of(request).jobs.forget(id_)
    return Json({"id": id_, "object": "job", "deleted": True})


def _known(request: Request) -> tuple[str, KeptJob]:
    id_ = request.path_params["id"]
    found = parts_of(request).jobs.known.get(id_)
    if found is None:
        raise ApiError(404, f"job: no job {shown(id_)}; it was never made, or fetched long ago", code="job_not_found")
    return id_, found


def _told(request: Request, id_: str, job: KeptJob) -> dict[str, Any]:
    """The state of a job, with its outputs or its error once it has ended."""
    ticket = job.ticket
    predicted = {"predicted_ms": ticket.admission.finish, "latest_ms": ticket.admission.latest}
    times = {name: round(max(0.0, at - ticket.began) * 1e3, 3) for name, at in predicted.items()}
    state = {"id": id_, "object": "job", "model": job.model.name, **times}
    if not ticket.done:
        return {**state, "status": "queued"}
    try:
        result = ticket.result(0)
    except AdaptcError as error:
        note(request, error=str(error))
        return {**state, "status": "failed", **api_error(error).body()}
    if parts_of(request).jobs.is_new(id_):
        _count(request, job.model, result.modalities, result.seconds, result.accuracy)
    told = {
        "modalities": [list(each) for each in result.modalities],
        "accuracy": result.accuracy,
        "ms": round(result.seconds * 1e3, 3),
        "late": result.late,
    }
    return {**state, "status": "done", "outputs": _listed(result.outputs), "adaptc": told}


def _count(
    request: Request, model: InputModel, rows: tuple[tuple[str, ...], ...], seconds: float, accuracy: float | None
) -> None:
    """Take an answer into account: the modalities of each row, its time and its expected accuracy."""
    parts_of(request).recent.answered(model.name, seconds, rows, accuracy)
    dropped = parts_of(request).metrics.dropped
    for used in rows:
        for modality in model.session.modal.modalities:
            if modality not in used:
                dropped.add(1, model.name, modality)


def _inputs(model: InputModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs as the session takes them: JSON's numbers in the type of the graph's input."""
    specs = model.session.inputs
    only = {
        name: specs[each.inputs[0]] for name, each in model.session.modal.modalities.items() if len(each.inputs) == 1
    }
    return {name: _value(name, value, specs.get(name) or only.get(name)) for name, value in given.items()}


def _value(name: str, value: Any, spec: TensorSpec | None) -> Any:
    if isinstance(value, dict):
        if spec is None:
            raise ApiError(400, f"inputs: {name}: an array, and no one input is called so", param=f"inputs.{name}")
        return _array(name, value, spec)
    if spec is None or isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], str)):
        return value
    try:
        return np.asarray(value).astype(spec.dtype, casting="same_kind" if _is_whole(value, spec) else "safe")
    except (ValueError, TypeError, OverflowError):
        return value  # the session says what is wrong with it


def _is_whole(value: Any, spec: TensorSpec) -> bool:
    """Whether a number of JSON may become the input's type: all numbers a float, whole ones whole ones."""
    kind = np.asarray(value).dtype.kind
    return kind in "iuf" and (np.dtype(spec.dtype).kind == "f" or kind in "iu")


def _array(name: str, value: Mapping[str, Any], spec: TensorSpec) -> Array:
    """An array from its bytes, in base64, little-endian, of the input's type."""
    try:
        content = base64.b64decode(value["data"], validate=True)
        array: Array = np.frombuffer(content, np.dtype(spec.dtype).newbyteorder("<")).reshape(value["shape"])
        return array.astype(spec.dtype)
    except (binascii.Error, ValueError) as error:
        raise ApiError(
            400,
            f"inputs: {name}: {' '.join(str(error).split())}; "
            f"base64 of little-endian {spec.dtype} in this shape is needed",
            param=f"inputs.{name}",
        ) from error


def _listed(outputs: Mapping[str, Array]) -> dict[str, Any]:
    """Outputs as lists; what is not finite is null, as JSON has nothing for it."""
    listed = {}
    for name, array in outputs.items():
        values = array
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            values = np.where(np.isfinite(array), array.astype(object), None)  # type: ignore[call-overload]
        listed[name] = values.tolist()
    return listed
