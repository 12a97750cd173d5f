"""The entry to a model's subsets of modalities, as a model of Triton's Python backend.

It runs nothing itself: it picks a subset and has Triton run the subset's own model, which batches requests of several
clients. Without a choice the most accurate subset of what was sent answers, as in a session.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from adaptc.runtime.errors import AdaptcError, EngineError, RequestError
from adaptc.runtime.validation import check_share, shown


@dataclass(frozen=True, slots=True)
class SubsetModel:
    """A subset of modalities, and the model of the repository that answers from it.

    Attributes:
        modalities: Their names.
        model: The model's name in the repository.
        inputs: The inputs that it reads.
        accuracy: Measured share of correct answers, 0 to 1; None if the bundle was never profiled.
        seconds: Measured time of one row; None likewise.
    """

    modalities: tuple[str, ...]
    model: str
    inputs: tuple[str, ...]
    accuracy: float | None = None
    seconds: float | None = None


def read_subsets(text: str) -> tuple[SubsetModel, ...]:
    """The subsets that a model's configuration names, in the JSON that an export writes."""
    return tuple(
        SubsetModel(tuple(each["modalities"]), each["model"], tuple(each["inputs"]), each["accuracy"], each["seconds"])
        for each in json.loads(text)
    )


def chosen(
    subsets: Sequence[SubsetModel], given: Sequence[str], accuracy: object = None, modalities: object = None
) -> SubsetModel:
    """The subset that answers a request.

    Args:
        subsets: All of them.
        given: Names of the inputs that were sent.
        accuracy: The lowest acceptable share of correct answers: the quickest subset that reaches it is taken.
        modalities: The names of the only modalities to use, with a + between them.

    Raises:
        RequestError: there is none.
    """
    names = ", ".join("+".join(each.modalities) for each in subsets)
    fitting = [each for each in subsets if set(each.inputs) <= set(given)]
    if not fitting:
        raise RequestError(f"inputs: {', '.join(given) or 'none'}; no subset reads these alone, there are: {names}")
    if modalities is not None:
        wanted = frozenset(str(modalities).split("+"))
        found = [each for each in fitting if frozenset(each.modalities) == wanted]
        if not found:
            raise RequestError(f"modalities: {shown(modalities)}; not compiled or not sent, there are: {names}")
        return found[0]
    known = [each for each in fitting if each.accuracy is not None and each.seconds is not None]
    if accuracy is None:
        return max(known or fitting, key=lambda each: (each.accuracy or 0.0, len(each.modalities)))
    try:
        floor = check_share("accuracy", float(str(accuracy)))
    except ValueError:
        raise RequestError(f"accuracy: {shown(accuracy)}; a number from 0 to 1 is needed") from None
    if not known:
        raise RequestError("accuracy: this bundle was never profiled; adaptc profile, and export again")
    enough = [each for each in known if (each.accuracy or 0.0) >= floor - 1e-9]
    if not enough:
        most = max(each.accuracy or 0.0 for each in known)
        raise RequestError(f"accuracy: {floor:.3f} cannot be reached with these inputs; at most {most:.3f} can")
    return min(enough, key=lambda each: each.seconds or 0.0)


class TritonSubsets:
    """The form that Triton's Python backend asks of a `TritonPythonModel`.

    Attributes:
        utils: The module `triton_python_backend_utils`, which is there inside Triton only; a subclass sets it.
    """

    utils: ClassVar[Any]

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read which subsets there are from the configuration's parameter `subsets`."""
        config = json.loads(args["model_config"])
        self._subsets = read_subsets(config["parameters"]["subsets"]["string_value"])
        self._inputs = [each["name"] for each in config["input"]]
        self._outputs = [each["name"] for each in config["output"] if each["name"] != "modalities"]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """The response to each request; one that is wrong does not harm the others."""
        return [self._response(request) for request in requests]

    def finalize(self) -> None:
        """Nothing is held."""

    def _response(self, request: Any) -> Any:
        try:
            tensors = {name: self.utils.get_input_tensor_by_name(request, name) for name in self._inputs}
            given = [name for name, tensor in tensors.items() if tensor is not None]
            asked = json.loads(request.parameters() or "{}")
            subset = chosen(self._subsets, given, asked.get("accuracy"), asked.get("modalities"))
            inner = self.utils.InferenceRequest(
                model_name=subset.model,
                requested_output_names=self._outputs,
                inputs=[tensors[name] for name in subset.inputs],
            ).exec()
            if inner.has_error():
                raise EngineError(f"{subset.model}: {inner.error().message()}")
            outputs = [self.utils.get_output_tensor_by_name(inner, name) for name in self._outputs]
            rows = len(tensors[subset.inputs[0]].as_numpy())
            used = np.full((rows, 1), "+".join(subset.modalities).encode(), object)
            return self.utils.InferenceResponse(output_tensors=[*outputs, self.utils.Tensor("modalities", used)])
        except AdaptcError as error:
            return self.utils.InferenceResponse(output_tensors=[], error=self.utils.TritonError(str(error)))
