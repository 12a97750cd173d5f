"""A model repository of Triton: graphs by its onnxruntime backend, and what decides by its Python backend."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptc.exports.options import BUNDLE, Exported, ExportOptions, engine_extra
from adaptc.exports.pbtxt import Message, Word, message_text, parameters
from adaptc.exports.wheel import WHEEL, own_wheel
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.manifest import GraphSpec, ModalSpec, SubsetSpec, TensorSpec
from adaptc.runtime.errors import BundleError, RequestError
from adaptc.runtime.loading import runs_on_gpu
from adaptc.runtime.model.plan import decoder_graph, is_encoder, is_modal
from adaptc.runtime.multimodal.profile import read_profile

_MODELS = "models"
_LARGEST_BATCH = 64
_QUEUE_MICROSECONDS = 500
_ENTRIES = 4  # so many requests wait for their subsets at the same time, and meet in a batch
_TYPES = {
    **{f"{sign}int{bits}": f"TYPE_{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
    "bool": "TYPE_BOOL",
}

_MODEL = '''\
"""Written by `adaptc export --to triton`; the logic is adaptc's."""

import triton_python_backend_utils as pb_utils

from adaptc.runtime.triton.{module} import {kind}


class TritonPythonModel({kind}):
    """What Triton's Python backend looks for."""

    utils = pb_utils
'''

_README = """\
# A bundle in Triton

In the container of Triton, whose Python backend needs adaptc (`tritonserver:YY.MM-py3` has it and onnxruntime's):

    pip install -r requirements.txt
    tritonserver --model-repository "$PWD/models"

HOW. Written by `adaptc export --to triton`; docs/scaling.md of adaptc says what was tried.
"""

_TEXT_HOW = """`curl localhost:8000/v2/models/NAME/generate -d '{"text_input": "1, 2, 3,"}'` writes; `generate_stream`
with `"stream": true` gives pieces. `sampling_parameters` is a JSON object as text, of the options of adaptc's
`Session.generate`, `budget` and `route` among them"""
_SUBSETS_HOW = """The model `NAME` takes any of the inputs, and picks a subset: of all that was sent, or by parameters
of the request, `accuracy` (a floor) or `modalities` (names with a + between them). Subsets are models too"""


def triton_export(bundle: Bundle, options: ExportOptions) -> Exported:
    """The folder's content.

    Raises:
        BundleError: the bundle's plan is neither a decoder nor subsets of modalities.
        RequestError: the bundle is an encoder, or a tensor is of a type that Triton does not have.
    """
    if is_encoder(bundle.manifest):
        raise RequestError(f"{bundle.path}: an encoder has no form for Triton; --to docker, ray or kubernetes is right")
    name = model_name(options.name)
    gpu = runs_on_gpu(bundle)
    if is_modal(bundle.manifest):
        files, copied, place, how = _subsets(bundle, name, options, gpu), None, BUNDLE, _SUBSETS_HOW
    else:
        files, how = _text(bundle, name, options, gpu), _TEXT_HOW
        copied, place = bundle if options.copy else None, f"{_MODELS}/{name}/1/{BUNDLE}"
    files |= {
        "README.md": _README.replace("HOW", how.replace("NAME", name)),
        "requirements.txt": f"./{WHEEL}[{engine_extra(bundle)}]\n",
        WHEEL: own_wheel(),
    }
    return Exported(files, copied, place)


def model_name(name: str) -> str:
    """A name as a folder of a repository can have it."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip(".") or "model"


def _text(bundle: Bundle, name: str, options: ExportOptions, gpu: bool) -> dict[str, str | bytes | Path]:
    decoder_graph(bundle)  # refuses what writes no text
    told: dict[str, object] = {
        "bundle": None if options.copy else options.place(bundle),
        "max_batch": None if gpu else options.batch(bundle),
        "threads": None if gpu else options.threads,
        "max_queue": options.max_queue,
    }
    config: Message = {
        "name": name,
        "backend": "python",
        "max_batch_size": 0,  # requests join a step by themselves
        "model_transaction_policy": {"decoupled": True},
        "input": [
            _tensor("text_input", "TYPE_STRING", [1]),
            {**_tensor("sampling_parameters", "TYPE_STRING", [1]), "optional": True},
            {**_tensor("stream", "TYPE_BOOL", [1]), "optional": True},
        ],
        "output": [_tensor("text_output", "TYPE_STRING", [1]), _tensor("adaptc", "TYPE_STRING", [1])],
        "instance_group": _instances(1, gpu),
        "parameters": parameters(told),
    }
    return {
        f"{_MODELS}/{name}/config.pbtxt": message_text(config),
        f"{_MODELS}/{name}/1/model.py": _MODEL.format(module="text", kind="TritonText"),
    }


def _subsets(bundle: Bundle, name: str, options: ExportOptions, gpu: bool) -> dict[str, str | bytes | Path]:
    """A model for each graph, an ensemble for each subset that has encoders, and the entry that picks a subset."""
    manifest = bundle.manifest
    if len(manifest.modal) != 1:
        raise BundleError(f"{bundle.path}: {len(manifest.modal)} models with modalities; one is exported at a time")
    [modal] = manifest.modal.values()
    encoders = [each.encoder for each in modal.modalities.values() if each.encoder is not None]
    graphs = dict.fromkeys([*encoders, *(each.graph for each in modal.subsets)])
    models = _distinct(name, graphs)
    files: dict[str, str | bytes | Path] = {}
    for graph, model in models.items():
        spec = manifest.graphs[graph]
        files[f"{_MODELS}/{model}/config.pbtxt"] = message_text(_graph_config(model, spec, options, gpu))
        files[f"{_MODELS}/{model}/1/model.onnx"] = bundle.onnx(spec.file)
        for data in spec.data:
            files[f"{_MODELS}/{model}/1/{data.rpartition('/')[2]}"] = bundle.file(data)
    profile = read_profile(bundle)
    told: list[dict[str, Any]] = []
    for subset in modal.subsets:
        model = models[subset.graph]
        if any(modal.modalities[each].encoder for each in subset.modalities):
            model = _free(
                f"{name}.{'+'.join(subset.modalities)}", {*models.values(), *(each["model"] for each in told)}
            )
            files[f"{_MODELS}/{model}/config.pbtxt"] = message_text(
                _ensemble_config(model, modal, subset, models, manifest.graphs)
            )
            files[f"{_MODELS}/{model}/1/.keep"] = ""  # a version of a model is a folder, if only an empty one
        known = None if profile is None else profile.subset(subset.modalities)
        told.append(
            {
                "modalities": list(subset.modalities),
                "model": model,
                "inputs": [each for modality in subset.modalities for each in modal.modalities[modality].inputs],
                "accuracy": None if known is None else known.accuracy,
                "seconds": None if known is None else known.seconds[0],
            }
        )
    entry = _entry_config(name, modal, told, manifest.graphs)
    files[f"{_MODELS}/{name}/config.pbtxt"] = message_text(entry)
    files[f"{_MODELS}/{name}/1/model.py"] = _MODEL.format(module="subsets", kind="TritonSubsets")
    return files


def _graph_config(model: str, spec: GraphSpec, options: ExportOptions, gpu: bool) -> Message:
    config: dict[str, Any] = {
        "name": model,
        "backend": "onnxruntime",
        "max_batch_size": _LARGEST_BATCH,
        "input": [_row(each) for each in spec.inputs],
        "output": [_row(each) for each in spec.outputs],
        "dynamic_batching": {"max_queue_delay_microseconds": _QUEUE_MICROSECONDS},
        "instance_group": _instances(1, gpu),
    }
    if gpu:
        config["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": [{"name": "tensorrt"}]}}
    else:
        config["parameters"] = parameters({"intra_op_thread_count": options.threads})
    return config


def _ensemble_config(
    name: str, modal: ModalSpec, subset: SubsetSpec, models: Mapping[str, str], graphs: Mapping[str, GraphSpec]
) -> Message:
    head = graphs[subset.graph]
    wanted = {each.name for each in head.inputs}
    steps: list[Message] = []
    inputs: list[TensorSpec] = []
    for modality in (modal.modalities[each] for each in subset.modalities):
        if modality.encoder is None:
            inputs += [each for each in head.inputs if each.name in modality.inputs]
            continue
        encoder = graphs[modality.encoder]
        inputs += encoder.inputs
        given = [each.name for each in encoder.outputs if each.name in wanted]
        steps.append(_step(models[modality.encoder], [each.name for each in encoder.inputs], given))
    steps.append(_step(models[subset.graph], [each.name for each in head.inputs], [each.name for each in head.outputs]))
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": _LARGEST_BATCH,
        "input": [_row(each) for each in inputs],
        "output": [_row(each) for each in head.outputs],
        "ensemble_scheduling": {"step": steps},
    }


def _entry_config(
    name: str, modal: ModalSpec, subsets: list[dict[str, Any]], graphs: Mapping[str, GraphSpec]
) -> Message:
    readers = [each.encoder for each in modal.modalities.values() if each.encoder is not None]
    readers += [each.graph for each in modal.subsets]
    specs = {each.name: each for graph in readers for each in graphs[graph].inputs}
    inputs = [specs[each] for modality in modal.modalities.values() for each in modality.inputs]
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": _LARGEST_BATCH,
        "input": [{**_row(each), "optional": True} for each in inputs],
        "output": [
            *(_row(each) for each in graphs[modal.subsets[0].graph].outputs),
            _tensor("modalities", "TYPE_STRING", [1]),
        ],
        "instance_group": _instances(_ENTRIES, False),
        "parameters": parameters({"subsets": subsets}),
    }


def _step(model: str, inputs: Sequence[str], outputs: Sequence[str]) -> Message:
    return {
        "model_name": model,
        "model_version": -1,
        "input_map": [{"key": each, "value": each} for each in inputs],
        "output_map": [{"key": each, "value": each} for each in outputs],
    }


def _row(spec: TensorSpec) -> Message:
    """A tensor whose first axis is the batch, which Triton does not name."""
    if not spec.shape or not isinstance(spec.shape[0], str):
        raise RequestError(f"{spec.name}: {list(spec.shape)}; Triton batches along a first axis of any size")
    sizes = [-1 if isinstance(each, str) else each for each in spec.shape[1:]]
    if spec.dtype not in _TYPES:
        raise RequestError(f"{spec.name}: {spec.dtype}; Triton has: {', '.join(_TYPES)}")
    if sizes:
        return _tensor(spec.name, _TYPES[spec.dtype], sizes)
    return {**_tensor(spec.name, _TYPES[spec.dtype], [1]), "reshape": {"shape": []}}  # it has no tensor without axes


def _tensor(name: str, kind: str, sizes: Sequence[int]) -> dict[str, Any]:
    return {"name": name, "data_type": Word(kind), "dims": list(sizes)}


def _instances(count: int, gpu: bool) -> list[Message]:
    return [{"count": count, "kind": Word("KIND_GPU" if gpu else "KIND_CPU")}]


def _distinct(name: str, graphs: Mapping[str, None]) -> dict[str, str]:
    """A name of a model for each graph; none is that of the entry."""
    models: dict[str, str] = {}
    for graph in graphs:
        models[graph] = _free(graph, {name, *models.values()})
    return models


def _free(wanted: str, taken: set[str]) -> str:
    plain = model_name(wanted)
    count = 1
    while (found := plain if count == 1 else f"{plain}_{count}") in taken:
        count += 1
    return found
