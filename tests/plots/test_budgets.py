"""Pictures: they are written, in both forms, and show what ran."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from adaptc.cli import main
from adaptc.errors import RequestError
from adaptc.plots import budgets as plot
from adaptc.runtime import SkipGates
from adaptc.runtime.model.budget import Skips
from tests.models import gated_bundle

GATES = SkipGates("learned", (1, 2), 4, 4, "any", ((0.0, -math.inf), (0.4, 0.5)))


def sweep(*, speed: bool) -> dict[str, Any]:
    rows = [{"share": s, "ffn_skipped": s + 0.01, "ratio": 1 + s, "ratio_after_warmup": 1 + s} for s in (0.1, 0.3)]
    steep = [row | {"ratio": 900.0} for row in rows]
    result: dict[str, Any] = {
        "of": "bundle",
        "text": "a.txt",
        "tokens": 100,
        "window": 50,
        "warmup": 4,
        "policies": {"learned": rows, "random": steep},
    }
    timed = [{"share": s, "ffn_skipped": s, "ratio": 1 + s / 2, "ceiling": 1 + s} for s in (0.0, 0.1, 0.3)]
    return result | ({"speed": {"dense_tokens_per_second": 100.0, "threads": 2, "rows": timed}} if speed else {})


@pytest.mark.parametrize("speed", [False, True])
def test_curves_have_every_policy(speed: bool) -> None:
    figure = plot.curves(sweep(speed=speed), "tiny")
    left, *right = figure.axes
    assert [line.get_label() for line in left.lines] == ["learned gates", "random"]
    assert np.asarray(left.lines[0].get_xdata()).tolist() == pytest.approx([0, 11, 31])
    assert np.asarray(left.lines[0].get_ydata()).tolist() == pytest.approx([1, 1.1, 1.3])
    assert np.isnan(left.lines[1].get_ydata()).sum() == 2, "beyond what anybody would run"
    assert len(right) == speed
    if speed:
        ceiling, measured = right[0].lines[:2]
        for line in (ceiling, measured):
            assert np.asarray(line.get_xdata()).tolist() == pytest.approx([1, 1.1, 1.3])
        assert np.asarray(measured.get_ydata()).tolist() == pytest.approx([1, 1.05, 1.15])


def test_a_map_shows_what_ran() -> None:
    ran = np.array([[True, False], [False, False], [True, True]])
    figure = plot.skip_map(Skips(ran, 4), GATES, ["a", "\n", "$日本$" * 5], "tiny")
    cells = figure.axes[0].collections[0].get_array()
    assert cells is not None
    assert np.asarray(cells).tolist() == [[2, 2, 2], [1, 0, 1], [0, 0, 1], [2, 2, 2]]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()][:2] == ["a", "⏎"]
    with pytest.raises(RequestError, match="no token after the warm-up of 4"):
        plot.skip_map(Skips(ran[:0], 4), GATES, [], "tiny")


def test_the_command_writes_pictures(tmp_path: Path) -> None:
    bundle = gated_bundle.write(tmp_path / "bundle", tokenizer=True)
    (tmp_path / "sweep.json").write_text(json.dumps(sweep(speed=True)))
    arguments = ["plot", str(bundle.path), "--threads", "1", "-p", "w1 w2", "-n", "20", "--budget", "0"]
    for ending, begins in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        into = tmp_path / ending
        given = ["--sweep", str(tmp_path / "sweep.json"), "-o", str(into), "--format", ending]
        result = CliRunner().invoke(main, [*arguments, *given])
        assert result.exit_code == 0, result.output
        for name in ("quality", "skips"):
            assert (into / f"{name}.{ending}").read_bytes().startswith(begins)


def test_generate_traces_the_map(tmp_path: Path) -> None:
    bundle = gated_bundle.write(tmp_path / "bundle", tokenizer=True)
    arguments = ["generate", str(bundle.path), "--threads", "1", "-p", "w1 w2", "-n", "20", "--trace"]
    result = CliRunner().invoke(main, [*arguments, "--budget", "0"])
    assert result.exit_code == 0, result.output
    trace, head, *lines = result.stderr.splitlines()
    assert head == "skipped (#) or ran (·), by layer; 17 tokens after the warm-up"
    assert [line.split()[0] for line in lines] == ["2", "1"]
    cells = "".join(line.split()[1] for line in lines)
    assert len(cells) == 2 * 17
    assert cells.count("#") / (17 * 3) == pytest.approx(json.loads(trace)["ffn_skipped"])
    dense = CliRunner().invoke(main, [*arguments, "--budget", "1"])
    assert "#" not in dense.stderr.partition("layer;")[2]


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    dense = gated_bundle.write(tmp_path / "dense", gated=False)
    result = CliRunner().invoke(main, ["plot", str(dense.path)])
    assert result.exit_code == 1
    assert "no gates; there is nothing to draw" in result.output
    bundle = gated_bundle.write(tmp_path / "bundle", tokenizer=True)
    for content in ("{", "[]"):
        (tmp_path / "sweep.json").write_text(content)
        result = CliRunner().invoke(main, ["plot", str(bundle.path), "--sweep", str(tmp_path / "sweep.json")])
        assert result.exit_code == 1
        assert "what `adaptc eval --sweep --json` prints is right" in result.output
    with pytest.raises(RequestError, match=r"\.png or \.svg is right"):
        plot.save(plot.curves(sweep(speed=False), "tiny"), tmp_path / "a.gif")
