"""The job queue: tickets, and a queue that keeps running whatever one job brings."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from adaptc.runtime.errors import EngineError, RequestError
from adaptc.runtime.multimodal.jobs import JobQueue
from tests.models.views_model import NAMES, rows, session


def test_jobs_get_their_own_answers() -> None:
    running = session()
    with JobQueue(running) as queue:
        given = [rows(count, seed) for seed, count in enumerate((3, 1, 7, 2))]
        tickets = [queue.submit(each, accuracy=0.9) for each in given]
        for each, ticket in zip(given, tickets, strict=True):
            result = ticket.result(10)
            total = np.sum([each[name].sum(1) * 2 for name in NAMES], 0)
            np.testing.assert_allclose(result.outputs["logits"][:, 0], total, rtol=1e-4, atol=1e-5)
            assert result.modalities == (NAMES,) * len(total)
            assert result.accuracy == pytest.approx(0.9)
            assert not result.late
    running.close()


def test_jobs_without_a_modality_are_answered_by_the_others() -> None:
    with session() as running, running.jobs() as queue:
        result = queue.submit({"cheap": rows(5)["cheap"]}).result(10)
        assert set(result.modalities) == {("cheap",)}
        assert set(running.graphs.ran) == {"m.encode.cheap", "m.fuse.cheap"}


def test_a_deadline_that_cannot_be_kept_is_refused_with_a_reason() -> None:
    with session() as running, running.jobs() as queue:
        ticket = queue.submit(rows(40), accuracy=0.9, deadline_ms=20)
        assert not ticket.admission.accepted
        with pytest.raises(
            RequestError,
            match=r"^job: refused: deadline: \d+ ms are needed, 20 were given; deadline_ms from \d+ on would",
        ):
            ticket.result()


@pytest.mark.parametrize(
    ("inputs", "asked", "message"),
    [
        ({"cheap": np.zeros((0, 3))}, {}, "inputs: rows {'cheap': 0}; the same number of each, from 1, is needed"),
        ({"smell": [1]}, {}, "inputs: no modality or input 'smell'; there are: cheap, dear"),
        (rows(2), {"accuracy": 0.99}, "accuracy: 0.990 cannot be reached; at most 0.900 can"),
        (rows(2), {"deadline_ms": 0}, "deadline_ms: 0; more than 0 is needed"),
        (rows(300), {}, "job: 300 requests; 1 to 256 are right"),
    ],
)
def test_bad_jobs_leave_the_queue_running(inputs: Any, asked: dict[str, Any], message: str) -> None:
    with session() as running, running.jobs() as queue:
        before = queue.submit(rows(2))
        with pytest.raises(RequestError) as caught:
            queue.submit(inputs, **asked)
        assert str(caught.value) == message
        assert len(queue.submit(rows(3)).result(10).modalities) == 3
        assert len(before.result(10).modalities) == 2


def test_a_graph_that_fails_fails_its_job_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with session() as running, running.jobs() as queue:
        whole = running.graphs.run
        started = threading.Event()

        def fail_once(*given: Any) -> Any:
            monkeypatch.setattr(running.graphs, "run", whole)
            started.set()
            raise EngineError("m.encode.dear: out of order")

        monkeypatch.setattr(running.graphs, "run", fail_once)
        failed = queue.submit(rows(1))
        assert started.wait(10)
        with pytest.raises(EngineError, match=r"^m\.encode\.dear: out of order$"):
            failed.result(10)
        assert len(queue.submit(rows(2)).result(10).modalities) == 2


def test_a_closed_queue_finishes_what_it_has_and_takes_no_more() -> None:
    with session() as running:
        queue = running.jobs()
        tickets = [queue.submit(rows(4, seed)) for seed in range(5)]
        queue.close()
        assert all(len(ticket.result(0).modalities) == 4 for ticket in tickets)
        with pytest.raises(RequestError, match=r"^jobs: the queue is closed$"):
            queue.submit(rows(1))
