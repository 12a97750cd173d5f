"""What reads long prompts on a GPU, as files of a bundle."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from adaptc.ir.device_lowering import PromptLowering
from adaptc.runtime.bundle.names import prompt_file, prompt_graph_file
from adaptc.runtime.bundle.strict_json import dumps


def prompt_files(name: str, prompt: PromptLowering) -> dict[str, bytes]:
    """The graphs of a prompt's layers and the calls, by their names in the bundle; `name` is the whole graph's."""
    files = {piece: prompt_graph_file(name, piece) for piece in prompt.models}
    graphs = {piece: replace(graph, file=files[piece]) for piece, graph in prompt.pieces.graphs.items()}
    protos = {files[piece]: ir.to_proto(model) for piece, model in prompt.models.items()}
    written = {file: proto.SerializeToString(deterministic=True) for file, proto in protos.items()}
    return {**written, prompt_file(name): dumps(replace(prompt.pieces, graphs=graphs)).encode()}
