"""What an engine touched: nodes by ONNX Runtime's own profile, weights by breaking those it should leave alone."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnxruntime as ort


def profiled(model: Path | bytes, prefix: Path) -> ort.InferenceSession:
    """A session of a graph, on the CPU, that notes what it runs."""
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def executed(session: ort.InferenceSession) -> set[str]:
    """Names of the profile's events that are of nodes; ends the profile."""
    events = json.loads(Path(session.end_profiling()).read_text())
    return {event["name"] for event in events if event["cat"] == "Node"}


def break_weights(graph: Path, data: Path) -> None:
    """Make nonsense of every weight that a graph has in a file of weights."""
    model = onnx.load(graph, load_external_data=False)
    with data.open("r+b") as file:
        for tensor in model.graph.initializer:
            place = {entry.key: int(entry.value) for entry in tensor.external_data if entry.key != "location"}
            if place:
                file.seek(place["offset"])
                file.write(b"\xff" * place["length"])
