"""onnxruntime-gpu on a machine without a GPU: addresses of a `FakeCuda` are the host's, so the CPU's engine reads them.

The CPU's engine has no product of halves: one is written as floats between casts, which rounds as cuBLAS does, whose
sums are floats too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from tests.fakes.cuda import FakeCuda


@dataclass
class FakeOrt:
    """The module, as far as `OrtSessions` knows it.

    Attributes:
        cuda: Whose memory is bound.
        providers: What a session says it runs on.
        runs: Each run's bindings: name, device, type, shape and address, inputs before outputs.
        opened: How many sessions were loaded, and with which options of the provider.
        severities: Below which severity nothing is said, each time it was set.
    """

    cuda: FakeCuda
    providers: Sequence[str] = ("CUDAExecutionProvider", "CPUExecutionProvider")
    runs: list[list[tuple[str, str, Any, tuple[int, ...], int]]] = field(default_factory=list)
    opened: list[dict[str, str]] = field(default_factory=list)
    severities: list[int] = field(default_factory=list)
    __version__ = "0"

    def set_default_logger_severity(self, severity: int) -> None:
        self.severities.append(severity)

    def SessionOptions(self) -> Any:  # noqa: N802
        return onnxruntime.SessionOptions()

    def RunOptions(self) -> Any:  # noqa: N802
        return onnxruntime.RunOptions()

    def InferenceSession(self, graph: bytes, options: Any, providers: Sequence[Any]) -> FakeSession:  # noqa: N802
        [(name, given)] = providers
        assert name == "CUDAExecutionProvider"
        self.opened.append(given)
        return FakeSession(self, graph)


class FakeSession:
    """One graph on the CPU's engine."""

    def __init__(self, ort: FakeOrt, graph: bytes) -> None:
        model = onnx.load_from_string(graph)
        _widen(model.graph)
        self.ort = ort
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.get_inputs, self.get_outputs = self.session.get_inputs, self.session.get_outputs

    def get_providers(self) -> list[str]:
        return list(self.ort.providers)

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self)

    def run_with_iobinding(self, binding: FakeBinding, options: Any) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        self.ort.runs.append(binding.bound)
        self.session.run_with_iobinding(binding.real)


class FakeBinding:
    """What a run reads and writes: memory of the GPU that was taken, or one number of the host's."""

    def __init__(self, session: FakeSession) -> None:
        self.session, self.real = session, session.session.io_binding()
        self.bound: list[tuple[str, str, Any, tuple[int, ...], int]] = []

    def bind_input(self, name: str, device: str, index: int, kind: Any, shape: Sequence[int], address: int) -> None:
        self._check(name, device, index, kind, shape, address)
        self.real.bind_input(name, "cpu", 0, kind, shape, address)

    def bind_output(self, name: str, device: str, index: int, kind: Any, shape: Sequence[int], address: int) -> None:
        assert device == "cuda"
        self._check(name, device, index, kind, shape, address)
        self.real.bind_output(name, "cpu", 0, kind, shape, address)

    def _check(self, name: str, device: str, index: int, kind: Any, shape: Sequence[int], address: int) -> None:
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        if device == "cuda":
            live = self.session.ort.cuda.live
            assert index == 0
            assert any(start <= address and address + size <= start + len(each) for start, each in live.items()), (
                f"{name}: {size} bytes are bound where fewer were taken"
            )
        else:
            assert (device, tuple(shape), kind) == ("cpu", (), np.int32), f"{name}: one number is the host's"
        self.bound.append((name, device, kind, tuple(shape), address))


def _widen(graph: Any) -> None:
    """Products of halves as products of floats between casts."""
    nodes = []
    for node in graph.node:
        if node.op_type != "FusedMatMul":
            nodes.append(node)
            continue
        wide = [f"{node.name}/{index}" for index in range(3)]
        for given, to in zip(node.input, wide, strict=False):
            nodes.append(helper.make_node("Cast", [given], [to], to=TensorProto.FLOAT))
        result = node.output[0]
        product = helper.make_node("FusedMatMul", wide[:2], [wide[2]], domain=node.domain)
        product.attribute.extend(node.attribute)
        nodes += [product, helper.make_node("Cast", [wide[2]], [result], to=TensorProto.FLOAT16)]
    del graph.node[:]
    graph.node.extend(nodes)
