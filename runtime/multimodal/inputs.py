"""Read and check the inputs of a multimodal request before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptc.runtime.backends.engine import Array
from adaptc.runtime.bundle.manifest import ModalSpec, TensorSpec
from adaptc.runtime.bundle.names import ATTENTION_MASK, INPUT_IDS
from adaptc.runtime.errors import RequestError
from adaptc.runtime.text.tokenizer import Tokenizer
from adaptc.runtime.validation import shown

"""The inputs a tokenizer fills."""

Inputs = Mapping[str, Any]
"""Values by the name of an input, or of a modality that has one input or reads text."""

ModalInputs = dict[str, dict[str, Array]]
"""By modality, its inputs by name: [rows, ...] each."""


def batch_size(inputs: ModalInputs) -> int:
    """The number of rows that inputs have."""
    return len(next(iter(next(iter(inputs.values())).values())))


def read_inputs(
    inputs: Inputs, modal: ModalSpec, specs: Mapping[str, TensorSpec], tokenizer: Tokenizer | None
) -> ModalInputs:
    """The inputs of a request, as arrays that the graphs take.

    Args:
        inputs: Arrays with or without a batch axis, or texts. A modality that is absent, or None, is missing.
        modal: The model's modalities.
        specs: Specs of every input, by name.
        tokenizer: For texts.

    Raises:
        RequestError: an unknown name, a value of another kind or shape, values that are not finite, no modality at
            all, or different numbers of rows.
    """
    if not isinstance(inputs, Mapping):
        raise RequestError(f"inputs: {shown(inputs)}; a mapping from names of inputs or modalities is needed")
    values = {name: value for name, value in inputs.items() if value is not None}
    owners = {each: name for name, spec in modal.modalities.items() for each in spec.inputs}
    result: ModalInputs = {}
    for name, value in values.items():
        if name in owners:
            result.setdefault(owners[name], {})[name] = _array(name, value, specs[name])
        elif name in modal.modalities:
            result[name] = _modality(name, value, modal.modalities[name].inputs, specs, tokenizer)
        else:
            raise RequestError(f"inputs: no modality or input {shown(name)}; there are: {', '.join(modal.modalities)}")
    for name, arrays in result.items():
        lacking = [each for each in modal.modalities[name].inputs if each not in arrays]
        if lacking:
            raise RequestError(f"inputs: {name} lacks {lacking[0]}; all of its inputs are needed")
    if not result:
        raise RequestError(f"inputs: none; one or more of {', '.join(modal.modalities)} are needed")
    rows = {name: len(next(iter(arrays.values()))) for name, arrays in result.items()}
    counts = {len(array) for arrays in result.values() for array in arrays.values()}
    if len(counts) != 1 or 0 in counts:
        raise RequestError(f"inputs: rows {rows}; the same number of each, from 1, is needed")
    return {name: result[name] for name in modal.modalities if name in result}


def _modality(
    name: str, value: Any, inputs: Sequence[str], specs: Mapping[str, TensorSpec], tokenizer: Tokenizer | None
) -> dict[str, Array]:
    texts = _texts(value)
    if texts is not None and INPUT_IDS in inputs:
        return _tokens(name, texts, inputs, specs, tokenizer)
    if len(inputs) != 1:
        raise RequestError(f"inputs: {name} has several inputs; name them: {', '.join(inputs)}")
    return {inputs[0]: _array(inputs[0], value, specs[inputs[0]])}


def _texts(value: Any) -> list[str] | None:
    if isinstance(value, str):
        return [value]
    listed = value.tolist() if isinstance(value, np.ndarray) and value.dtype.kind == "U" else value
    if isinstance(listed, (list, tuple)) and listed and all(isinstance(each, str) for each in listed):
        return list(listed)
    return None


def _tokens(
    name: str, texts: list[str], inputs: Sequence[str], specs: Mapping[str, TensorSpec], tokenizer: Tokenizer | None
) -> dict[str, Array]:
    """Token ids and mask, int64[rows, tokens]: cut or filled to the graph's number of tokens."""
    if tokenizer is None:
        raise RequestError(f"inputs: {name}: this bundle has no tokenizer; token ids are needed")
    length = specs[INPUT_IDS].shape[1]
    ids = np.zeros((len(texts), int(length)), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        tokens = tokenizer.encode(text)[: int(length)]
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    arrays = {INPUT_IDS: ids, ATTENTION_MASK: mask}
    return {each: arrays[each].astype(specs[each].dtype) for each in inputs if each in arrays}


def _array(name: str, value: Any, spec: TensorSpec) -> Array:
    wanted = f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # such as lists of several lengths
        raise RequestError(f"inputs: {name}: lists of different lengths; {wanted} is needed") from error
    if array.dtype.kind not in "biuf":
        raise RequestError(f"inputs: {name}: {array.dtype}; {wanted} is needed")
    dtype = np.dtype(spec.dtype)
    if array.dtype != dtype and not _widens(array, dtype):
        raise RequestError(f"inputs: {name}: {array.dtype}; {wanted} is needed")
    if array.ndim == len(spec.shape) - 1:
        array = array[None]
    fits = array.ndim == len(spec.shape) and all(
        isinstance(known, str) or known == size for known, size in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise RequestError(f"inputs: {name}: {array.dtype}{list(array.shape)}; {wanted} is needed")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array).reshape(len(array), -1).all(1)))
        raise RequestError(f"inputs: {name}: row {row} has values that are not finite; is its file damaged?")
    return np.ascontiguousarray(array, dtype)


def _widens(array: Array, dtype: np.dtype[Any]) -> bool:
    """Whether values survive: floats as other floats, whole numbers as wider ones."""
    if array.dtype.kind == dtype.kind == "f":
        return True
    return bool(array.dtype.kind in "iu" and dtype.kind in "iu" and np.can_cast(array.dtype, dtype))


def gather(subset: Sequence[str], jobs: Mapping[int, ModalInputs], rows: Sequence[tuple[int, int]]) -> ModalInputs:
    """The inputs of some requests of several jobs, as one batch.

    Args:
        subset: The modalities to gather.
        jobs: Inputs of each job, by its number.
        rows: (job, index of the request within it), in the order of the batch.
    """
    gathered: dict[str, dict[str, Any]] = {}
    for name in subset:
        inputs = jobs[rows[0][0]][name]
        gathered[name] = {each: np.stack([jobs[job][name][each][row] for job, row in rows]) for each in inputs}
    return gathered


def blank_inputs(modal: ModalSpec, specs: Mapping[str, TensorSpec], subset: Sequence[str]) -> ModalInputs:
    """One row of zeros for some modalities."""
    return {
        name: {
            each: np.zeros((1, *map(int, specs[each].shape[1:])), specs[each].dtype)
            for each in modal.modalities[name].inputs
        }
        for name in subset
    }
