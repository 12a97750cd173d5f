"""A stand-in for Triton: it reads a model repository and runs it as Triton's documentation says, in this process.

Models of the onnxruntime backend run in plain ONNX Runtime, ensembles step by step, models of the Python backend
with the module that they import, here `utils`. It is strict where Triton is: tensors must be of the type and the
sizes that a configuration says, and files lie where Triton looks.
"""

from __future__ import annotations

import importlib.util
import json
import queue
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

Array = npt.NDArray[Any]
TYPES = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64, "TYPE_STRING": np.object_, "TYPE_BOOL": np.bool_}
_TOKEN = re.compile(r'\s*(?:([A-Za-z_][\w]*)\s*(:?)|(-?\d+)|("(?:[^"\\\n]|\\.)*")|([{}]))')


def read_pbtxt(text: str) -> dict[str, list[Any]]:
    """A message: every field as a list, in order. Only what an export writes is understood, and nothing else taken."""
    stack: list[dict[str, list[Any]]] = [{}]
    names: list[str] = []
    place = 0
    while place < len(text.rstrip()):
        found = _TOKEN.match(text, place)
        assert found is not None, text[place : place + 40]
        place = found.end()
        word, colon, number, quoted, brace = found.groups()
        if word is not None and len(names) < len(stack):
            names.append(word)
            continue
        if brace == "{":
            stack.append({})
            continue
        value: Any
        if brace == "}":
            value = stack.pop()
        elif word is not None:
            assert not colon
            value = {"true": True, "false": False}.get(word, word)
        else:
            value = int(number) if number is not None else unquoted(quoted)
        stack[-1].setdefault(names.pop(), []).append(value)
    assert len(stack) == 1
    assert not names
    return stack[0]


def unquoted(text: str) -> str:
    """A string of a message: octal escapes are bytes of UTF-8."""

    def escaped(found: re.Match[bytes]) -> bytes:
        return bytes([int(found[1], 8)]) if found[1] else found[2]

    return re.sub(rb'\\(?:([0-7]{3})|(["\\]))', escaped, text[1:-1].encode()).decode()


class TritonModelException(Exception):  # noqa: N818 - Triton's name
    """What `exec` raises inside Triton for a model that is not there."""


@dataclass
class Tensor:
    """`pb_utils.Tensor`."""

    _name: str
    _array: Array

    def __post_init__(self) -> None:
        assert isinstance(self._array, np.ndarray)
        if self._array.dtype == object:
            assert all(isinstance(each, bytes) for each in self._array.reshape(-1)), "strings are bytes"

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Array:
        return self._array


@dataclass
class TritonError:
    """`pb_utils.TritonError`."""

    _message: str

    def message(self) -> str:
        return self._message


@dataclass
class InferenceResponse:
    """`pb_utils.InferenceResponse`."""

    output_tensors: Sequence[Tensor] = ()
    error: Any = None

    def has_error(self) -> bool:
        return self.error is not None


@dataclass
class Sender:
    """`pb_utils.InferenceResponseSender`: a queue of responses; None ends them."""

    responses: queue.Queue[InferenceResponse | None] = field(default_factory=queue.Queue)
    cancelled: bool = False
    ended: bool = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.ended, "a response after the final one"
        if response is not None:
            self.responses.put(response)
        if flags:
            self.ended = True
            self.responses.put(None)

    def is_cancelled(self) -> bool:
        return self.cancelled


class Repository:
    """A model repository, loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: list[tuple[str, int]] = []
        self.utils = self._utils()
        self.configs = {}
        for path in sorted(folder.iterdir()):
            assert path.is_dir()
            config = read_pbtxt((path / "config.pbtxt").read_text(encoding="utf-8"))
            assert config["name"] == [path.name]
            assert (path / "1").is_dir(), "a model has a version"
            self.configs[path.name] = config
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._python: dict[str, Any] = {}

    def backend(self, model: str) -> str:
        config = self.configs[model]
        return str(config.get("backend", config.get("platform"))[0])  # type: ignore[index]

    def infer(self, model: str, inputs: Mapping[str, Array], **asked: Any) -> dict[str, Array]:
        """What a client of a model that is not decoupled gets."""
        response = self._run(model, [Tensor(name, array) for name, array in inputs.items()], asked)
        if response.has_error():
            raise TritonModelException(response.error.message())
        return {each.name(): each.as_numpy() for each in response.output_tensors}

    def begin(self, model: str, inputs: Mapping[str, Array]) -> Sender:
        """Ask a decoupled model."""
        [policy] = self.configs[model]["model_transaction_policy"]
        assert policy == {"decoupled": [True]}
        self._check(model, "input", inputs, batched=False)
        sender = Sender()
        request = self.utils.InferenceRequest(model, [], [Tensor(*each) for each in inputs.items()], sender=sender)
        assert self.python(model).execute([request]) is None
        return sender

    def python(self, model: str) -> Any:
        """The initialized `TritonPythonModel` of a model."""
        if model not in self._python:
            spec = importlib.util.spec_from_file_location(f"of_{len(self._python)}", self.folder / model / "1/model.py")
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            before = sys.modules.get("triton_python_backend_utils")
            sys.modules["triton_python_backend_utils"] = self.utils
            try:
                spec.loader.exec_module(module)
            finally:
                del sys.modules["triton_python_backend_utils"]
                if before is not None:
                    sys.modules["triton_python_backend_utils"] = before
            made = module.TritonPythonModel()
            made.initialize(
                {
                    "model_config": json.dumps(as_json(self.configs[model])),
                    "model_repository": str(self.folder / model),
                    "model_version": "1",
                    "model_name": model,
                }
            )
            self._python[model] = made
        return self._python[model]

    def close(self) -> None:
        for model in self._python.values():
            model.finalize()

    def _utils(self) -> Any:
        repository = self

        class InferenceRequest:
            """`pb_utils.InferenceRequest`, as a model gets it and as it makes one."""

            def __init__(
                self,
                model_name: str,
                requested_output_names: Sequence[str],
                inputs: Sequence[Tensor],
                parameters: str = "",
                sender: Sender | None = None,
            ) -> None:
                self.model, self.wanted, self.inputs = model_name, requested_output_names, inputs
                self._parameters, self._sender = parameters, sender

            def parameters(self) -> str:
                return self._parameters

            def get_response_sender(self) -> Sender:
                assert self._sender is not None, "only a decoupled model has a sender"
                return self._sender

            def exec(self) -> InferenceResponse:
                response: InferenceResponse = repository._run(self.model, self.inputs, {})
                if not response.has_error():
                    assert {each.name() for each in response.output_tensors} >= set(self.wanted)
                return response

        utils: Any = ModuleType("triton_python_backend_utils")
        utils.Tensor, utils.TritonError, utils.InferenceRequest = Tensor, TritonError, InferenceRequest
        utils.InferenceResponse, utils.TritonModelException = InferenceResponse, TritonModelException
        utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
        utils.get_input_tensor_by_name = lambda request, name: found(request.inputs, name)
        utils.get_output_tensor_by_name = lambda response, name: found(response.output_tensors, name)
        return utils

    def _run(self, model: str, tensors: Sequence[Tensor], asked: Mapping[str, Any]) -> InferenceResponse:
        inputs = {each.name(): each.as_numpy() for each in tensors}
        self._check(model, "input", inputs)
        self.ran.append((model, len(next(iter(inputs.values())))))
        kind = self.backend(model)
        if kind == "python":
            request = self.utils.InferenceRequest(model, [], tensors, json.dumps(asked) if asked else "")
            response: InferenceResponse = self.python(model).execute([request])[0]
        else:
            outputs = self._onnx(model, inputs) if kind == "onnxruntime" else self._ensemble(model, inputs)
            response = InferenceResponse([Tensor(*each) for each in outputs.items()])
        if not response.has_error():
            self._check(model, "output", {each.name(): each.as_numpy() for each in response.output_tensors})
        return response

    def _onnx(self, model: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if model not in self._sessions:
            self._sessions[model] = onnxruntime.InferenceSession(self.folder / model / "1/model.onnx")
        session = self._sessions[model]
        config = self.configs[model]
        for side, nodes in (("input", session.get_inputs()), ("output", session.get_outputs())):
            said = {each["name"][0]: list(each["dims"]) for each in config[side]}
            real = {node.name: [size if isinstance(size, int) else -1 for size in node.shape[1:]] for node in nodes}
            assert said == real
            assert all(not isinstance(node.shape[0], int) for node in nodes), "the first axis is the batch"
        names = [node.name for node in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    def _ensemble(self, model: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        known = dict(inputs)
        [scheduling] = self.configs[model]["ensemble_scheduling"]
        for step in scheduling["step"]:
            taken = {each["key"][0]: known[each["value"][0]] for each in step["input_map"]}
            given = self._run(step["model_name"][0], [Tensor(*each) for each in taken.items()], {})
            outputs = {each.name(): each.as_numpy() for each in given.output_tensors}
            for each in step["output_map"]:
                assert each["value"][0] not in known, "a tensor is made once"
                known[each["value"][0]] = outputs[each["key"][0]]
        return {each["name"][0]: known[each["name"][0]] for each in self.configs[model]["output"]}

    def _check(self, model: str, side: str, arrays: Mapping[str, Array], batched: bool = True) -> None:
        config = self.configs[model]
        said = {each["name"][0]: each for each in config[side]}
        assert set(arrays) <= set(said), f"{model}: {set(arrays) - set(said)}"
        lacking = {name for name, each in said.items() if name not in arrays and not each.get("optional", [False])[0]}
        assert side == "output" or not lacking, f"{model}: {lacking} lacking"
        for name, array in arrays.items():
            assert array.dtype == TYPES[said[name]["data_type"][0]], f"{model}.{name}: {array.dtype}"
            shape = array.shape[1:] if batched and config["max_batch_size"][0] else array.shape
            dims = said[name]["dims"]
            assert len(shape) == len(dims), f"{model}.{name}: {array.shape}"
            assert all(want in (-1, size) for want, size in zip(dims, shape, strict=True))
            assert not batched or len(array) <= max(1, config["max_batch_size"][0])


def found(tensors: Sequence[Tensor], name: str) -> Tensor | None:
    return next((each for each in tensors if each.name() == name), None)


def as_json(config: Mapping[str, list[Any]]) -> dict[str, Any]:
    """A configuration as models get it: parameters as a mapping, single values of what we read as such."""
    return {
        "input": [{"name": each["name"][0]} for each in config["input"]],
        "output": [{"name": each["name"][0]} for each in config["output"]],
        "parameters": {
            each["key"][0]: {"string_value": each["value"][0]["string_value"][0]}
            for each in config.get("parameters", [])
        },
    }
