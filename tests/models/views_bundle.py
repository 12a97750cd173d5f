"""A whole bundle of the model that `views_model` computes by hand: real graphs, two modalities, a profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from adaptc.runtime.bundle.folder import Bundle, write_bundle
from adaptc.runtime.bundle.manifest import (
    GraphSpec,
    Manifest,
    ModalitySpec,
    ModalSpec,
    ModelRecord,
    SubsetSpec,
    TargetRecord,
    TensorSpec,
)
from adaptc.runtime.bundle.names import PROFILE
from adaptc.runtime.bundle.plan import Run
from adaptc.runtime.bundle.strict_json import dumps
from tests.models import views_model

SPEC = "version: 1\nmodels:\n  m: {source: m.py}\n"
LOGITS = TensorSpec("logits", "float32", ("batch", 2))


def write(into: Path, names: tuple[str, str] = views_model.NAMES, profile: bool = True) -> Bundle:
    """Write it.

    Args:
        into: The bundle's folder.
        names: What the modalities and their inputs are called; the second is read by subsets as it is.
        profile: Whether it was profiled.
    """
    cheap, dear = names
    inputs = {name: TensorSpec(name, "float32", ("batch", 3)) for name in names}
    features = TensorSpec(f"{cheap}_features", "float32", ("batch", 3))
    modal = ModalSpec(
        {
            cheap: ModalitySpec((cheap,), f"m.encode.{cheap}", (features.name,)),
            dear: ModalitySpec((dear,), None, (dear,)),
        },
        (
            SubsetSpec((cheap,), f"m.fuse.{cheap}"),
            SubsetSpec((dear,), f"m.fuse.{dear}"),
            SubsetSpec(names, f"m.fuse.{cheap}+{dear}"),
        ),
    )
    read = {(cheap,): (features,), (dear,): (inputs[dear],), names: (features, inputs[dear])}
    graphs: dict[str, GraphSpec] = {}
    files: dict[str, Path | bytes] = {"spec.yaml": SPEC.encode()}
    encode = [helper.make_node("Mul", [cheap, "two"], [features.name])]
    graphs[f"m.encode.{cheap}"] = _graph("encode", encode, (inputs[cheap],), (features,), files)
    for place, subset in enumerate(modal.subsets):
        taken = read[subset.modalities]
        nodes = [helper.make_node("ReduceSum", [each.name, "axis"], [f"sum.{each.name}"]) for each in taken]
        nodes.append(helper.make_node("Sum", [f"sum.{each.name}" for each in taken], ["all"]))
        nodes.append(helper.make_node("Mul", ["all", "signs"], ["logits"]))
        graphs[subset.graph] = _graph(f"fuse{place}", nodes, taken, (LOGITS,), files)
    if profile:
        renamed = dumps(views_model.PROFILE)
        for old, new in zip(views_model.NAMES, names, strict=True):
            renamed = renamed.replace(f'"{old}"', json.dumps(new))
        files[PROFILE] = renamed.encode()
    manifest = Manifest(
        adaptc="0",
        models={"m": ModelRecord("m.py", None, None, "module", "0" * 64)},
        passes=(),
        plan=(Run(f"m.fuse.{cheap}+{dear}"),),
        graphs=graphs,
        gates={},
        modal={"m": modal},
        target=TargetRecord("onnxruntime", "fp32", 1, 1),
        versions={},
        bytes_per_token=0,
    )
    return write_bundle(into, files, manifest)


def _graph(
    file: str,
    nodes: list[onnx.NodeProto],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    files: dict[str, Path | bytes],
) -> GraphSpec:
    """A graph whose weights are in a file beside it, as those of a compiled bundle are."""
    weights: dict[str, npt.NDArray[Any]] = {
        "two": np.array([2, 2, 2], np.float32),
        "axis": np.array([1], np.int64),
        "signs": np.array([1, -1], np.float32),
    }
    used = {each for node in nodes for each in node.input}
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items() if name in used]
    content = b""
    for tensor in tensors:
        if tensor.name == "axis":
            continue
        place = len(content)
        content += tensor.raw_data
        size = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", f"{file}.data"), ("offset", str(place)), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
    read, given = (
        [helper.make_tensor_value_info(each.name, TensorProto.FLOAT, list(each.shape)) for each in side]
        for side in (inputs, outputs)
    )
    model = helper.make_model(
        helper.make_graph(nodes, "g", read, given, tensors), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    files[f"graphs/{file}.onnx"] = model.SerializeToString()
    files[f"graphs/{file}.data"] = content
    return GraphSpec(f"graphs/{file}.onnx", inputs, outputs, (f"graphs/{file}.data",), None)
