"""Models that answer inputs, over HTTP: now, and as jobs."""

from __future__ import annotations

import base64
import re
import threading
import time
from typing import Any

import numpy as np
import pytest

from adaptc.runtime.multimodal.jobs import Ticket
from adaptc.runtime.server.endpoints.parts import ServerParts
from tests.models import views_model
from tests.server.served import ask, by_hand, classifier, error_of, parts_of

ROWS = views_model.rows(3)
LISTED = {name: array.tolist() for name, array in ROWS.items()}


@pytest.fixture
def parts() -> ServerParts:
    return parts_of(classifier())


def test_inputs_are_answered_as_the_session_does(parts: ServerParts) -> None:
    with views_model.session() as session:
        expected = session.infer(ROWS, accuracy=0.82)
    answer = ask(parts, "/v1/infer", {"inputs": LISTED, "accuracy": 0.82}).json()
    np.testing.assert_allclose(answer["outputs"]["logits"], expected.outputs["logits"], rtol=1e-6)
    assert answer["adaptc"]["option"] == expected.trace.option == "dear"
    assert answer["adaptc"]["modalities"] == [["dear"]] * 3
    packed = {
        name: {"data": base64.b64encode(array.astype("<f4").tobytes()).decode(), "shape": list(array.shape)}
        for name, array in ROWS.items()
    }
    assert ask(parts, "/v1/infer", {"inputs": packed, "accuracy": 0.82}).json()["outputs"] == answer["outputs"]


def test_whole_numbers_are_floats_where_floats_are_needed(parts: ServerParts) -> None:
    answer = ask(parts, "/v1/infer", {"inputs": {"cheap": [1, 2, 3]}}).json()
    assert answer["outputs"]["logits"] == [[12, -12]]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"inputs": {}}, 400, "inputs: none; one or more of cheap, dear are needed"),
        ({"inputs": {"smell": [[1]]}}, 400, "inputs: no modality or input 'smell'; there are: cheap, dear"),
        ({"inputs": {"cheap": [[1, 2]]}}, 400, "inputs: cheap: float32[1, 2]; float32[batch, 3] is needed"),
        ({"inputs": {"cheap": [["x"]]}}, 400, "inputs: cheap: <U1; float32[batch, 3] is needed"),
        (
            {"inputs": {"cheap": [[1, 2], [3]]}},
            400,
            "inputs: cheap: lists of different lengths; float32[batch, 3] is needed",
        ),
        (
            {"inputs": {"cheap": {"data": "!", "shape": [1]}}},
            400,
            "base64 of little-endian float32 in this shape is needed",
        ),
        (
            {"inputs": LISTED, "accuracy": 0.99},
            400,
            "accuracy: 0.990 cannot be reached with these inputs; at most 0.900 can",
        ),
        ({"inputs": LISTED, "modalities": ["smell"]}, 400, "modalities: no 'smell'; there are: cheap, dear"),
        (
            {"inputs": LISTED, "model": "hand"},
            400,
            (
                "model: hand writes text, and /v1/infer is for classifiers of several modalities; "
                "of those views is served, and prompts for hand go to /v1/chat/completions"
            ),
        ),
    ],
)
def test_wrong_inputs_are_refused(body: dict[str, Any], status: int, said: str) -> None:
    answer = ask(parts_of(classifier(), by_hand()), "/v1/infer", {"model": "views", **body})
    assert answer.status_code == status
    assert error_of(answer)["message"].endswith(said)


def test_a_model_of_inputs_writes_no_text(parts: ServerParts) -> None:
    answer = ask(parts, "/v1/completions", {"prompt": "x"})
    assert error_of(answer)["message"] == "model: views answers inputs and writes no text; /v1/infer is for it"


def test_a_job_is_fetched_when_it_is_done(parts: ServerParts) -> None:
    made = ask(parts, "/v1/jobs", {"inputs": LISTED, "accuracy": 0.85, "deadline_ms": 60000})
    assert made.status_code == 202
    job = made.json()
    until = time.monotonic() + 20
    while job["status"] == "queued" and time.monotonic() < until:
        time.sleep(0.01)
        job = ask(parts, f"/v1/jobs/{job['id']}").json()
    assert job["status"] == "done"
    assert len(job["outputs"]["logits"]) == 3
    assert job["adaptc"]["accuracy"] >= 0.85
    assert not job["adaptc"]["late"]
    assert ask(parts, f"/v1/jobs/{job['id']}", method="DELETE").json()["deleted"]
    assert ask(parts, f"/v1/jobs/{job['id']}").status_code == 404
    parts.jobs.close()


def test_a_job_that_would_be_late_is_refused(parts: ServerParts) -> None:
    answer = ask(parts, "/v1/jobs", {"inputs": LISTED, "accuracy": 0.9, "deadline_ms": 0.25})
    assert answer.status_code == 409
    error = error_of(answer)
    assert (error["code"], error["param"]) == ("deadline_cannot_be_kept", "deadline_ms")
    told = re.fullmatch(
        r"job: refused: deadline: \d+ ms are needed, 0\.25 were given; deadline_ms from (\d+) on would do, "
        r"and fewer requests or a lower accuracy need less",
        error["message"],
    )
    assert told is not None
    again = ask(parts, "/v1/jobs", {"inputs": LISTED, "accuracy": 0.9, "deadline_ms": int(told[1]) + 20000})
    assert again.status_code == 202
    assert 0 < again.json()["predicted_ms"] <= again.json()["latest_ms"]
    parts.jobs.close()


def test_jobs_for_a_model_that_writes_text_are_told_where_they_belong() -> None:
    answer = ask(parts_of(by_hand()), "/v1/jobs", {"inputs": LISTED})
    assert answer.status_code == 400
    assert error_of(answer)["message"] == (
        "model: hand writes text, and /v1/jobs is for classifiers of several modalities; none is served here, "
        "and prompts for hand go to /v1/chat/completions"
    )


def test_two_first_jobs_share_a_queue(parts: ServerParts) -> None:
    model = parts.models.inputs("views", "/v1/jobs")
    tickets: list[Ticket] = []
    threads = [threading.Thread(target=lambda: tickets.append(parts.jobs.submit(model, ROWS, {})[1])) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(parts.jobs.queues) == 1
    assert all(len(ticket.result(10).modalities) == 3 for ticket in tickets)
    assert sum(thread.name == "adaptc jobs" for thread in threading.enumerate()) == 1
    parts.jobs.close()


def test_queues_are_made_before_the_first_job(parts: ServerParts) -> None:
    parts.jobs.open(parts.models.by_name.values(), "table")
    assert set(parts.jobs.queues) == {"views"}
    ran = parts.models.inputs("views", "/v1/jobs").session.graphs.ran
    assert dict(ran) == {"m.encode.cheap": 1, "m.fuse.cheap": 1}
    parts.jobs.close()
