"""Pictures of loads show what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np

from adaptc.plots.load import plot_load


def line(due: float, first: float, **more: Any) -> dict[str, Any]:
    times = [due + first, due + first + 0.1, due + first + 0.2]
    return {"run": 0, "due": due, "ended": times[-1], "chunk_times": times, "tpot": 0.1, **more}


def report(*lines: dict[str, Any], targets: dict[str, float] | None = None, **more: Any) -> dict[str, Any]:
    settings = {"targets": targets or {}, "seconds": 10.0}
    return {"exchanges": {"a": list(lines), **more}, "settings": settings}


def drawn(content: dict[str, Any], into: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    plot_load(content, into)
    picture: np.ndarray[Any, np.dtype[np.float32]] = matplotlib.image.imread(into)
    return picture


def test_every_part_of_a_report_changes_the_picture(tmp_path: Path) -> None:
    base = [line(place, 0.1 + place / 50) for place in range(8)]
    failed = {"run": 0, "due": 3.0, "ended": 5.0, "error": "status 429"}
    pictures = [
        drawn(content, tmp_path / f"{place}.png")
        for place, content in enumerate(
            [
                report(*base),
                report(*base[:-1], line(7.5, 0.2)),
                report(*base, failed),
                report(*base, targets={"ttft": 0.2}),
                report(*base, targets={"tpot": 0.11}),
                report(*base, other=[line(1.0, 0.3)]),
            ]
        )
    ]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    assert all(picture.shape == pictures[0].shape for picture in pictures)


def test_a_run_without_answers_is_drawn(tmp_path: Path) -> None:
    failed = {"run": 0, "due": 0.0, "ended": 0.0, "error": "connection refused"}
    assert drawn(report(failed), tmp_path / "a.png").std() > 0
    assert drawn(report(), tmp_path / "b.png").std() > 0
