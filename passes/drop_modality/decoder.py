"""What `drop_modality` does with a language model that takes images: one decoder, with or without them.

A classifier has a graph for each subset. A decoder does with one, which holds its weights and its cache once: images'
features are an input of it, and no image is no row of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from adaptc.errors import PassError
from adaptc.ir.fx_graph import FxGraph
from adaptc.ir.operators.place import PATCHES, WINDOWS
from adaptc.passes.drop_modality import stand_ins
from adaptc.passes.drop_modality.graph import Cut, cut, extract, head
from adaptc.runtime.bundle.manifest import ModalitySpec, ModalSpec, SubsetSpec
from adaptc.runtime.bundle.names import IMAGE_FEATURES, IMAGE_PLACES, INPUT_IDS, PIXEL_VALUES, POSITION_IDS

_BESIDE = {POSITION_IDS: INPUT_IDS, PATCHES: PIXEL_VALUES, WINDOWS: PIXEL_VALUES, IMAGE_PLACES: PIXEL_VALUES}
"""Inputs that a user need not name: of the modality that the other one is of."""

Modalities = Mapping[str, Sequence[str]]


def is_decoder(graph: FxGraph) -> bool:
    """Whether it is a language model that takes images."""
    return any(node.target is torch.ops.adaptc.place.default for node in graph.module.graph.nodes)


def subsets_of(modalities: Modalities, wanted: Sequence[tuple[str, ...]], *, named: bool) -> list[tuple[str, ...]]:
    """The subsets that a language model can do: those with its text.

    Args:
        modalities: Names of inputs by modality.
        wanted: Subsets.
        named: Whether the spec names them; one without text is then an error.

    Raises:
        PassError: the modalities are not images and text, or a subset is without text.
    """
    text = next((name for name, inputs in modalities.items() if INPUT_IDS in inputs), None)
    if text is None:
        raise PassError(f"modalities: none has {INPUT_IDS}, the text of this language model")
    if len(modalities) != 2 or PIXEL_VALUES in modalities[text]:
        raise PassError(
            f"modalities: {', '.join(modalities)}; one with {PIXEL_VALUES} and one with {INPUT_IDS} are right"
        )
    without = [subset for subset in wanted if text not in subset]
    if without and named:
        raise PassError(f"keep: {'+'.join(without[0])}: a language model cannot do without {text}")
    return [subset for subset in wanted if text in subset]


def text_only(graph: FxGraph) -> FxGraph:
    """A captured language model without its images; itself if it takes none."""
    if not is_decoder(graph):
        return graph
    parts, _ = split(graph, "", {"image": (PIXEL_VALUES,), "text": (INPUT_IDS,)}, [("text",)])
    return parts[""]


def split(
    graph: FxGraph, model: str, modalities: Modalities, subsets: Sequence[tuple[str, ...]]
) -> tuple[dict[str, FxGraph], ModalSpec]:
    """Cut a language model into the encoder of its images and its decoder.

    Args:
        graph: Captured; stays as it is.
        model: Its name: the decoder keeps it, the encoder is `MODEL.encode.MODALITY`.
        modalities: Names of inputs by modality.
        subsets: As `subsets_of` gives them.

    Returns:
        The graphs by name, the encoder first and only if a subset needs it; and which run for what.

    Raises:
        PassError: an input is unknown or of no modality, or images cannot be cut out.
    """
    divided = cut(graph.fork(), _completed(modalities, graph.inputs))
    text = next(name for name, inputs in modalities.items() if INPUT_IDS in inputs)
    used = {name for subset in subsets for name in subset}
    specs = {text: ModalitySpec((INPUT_IDS,), None, (INPUT_IDS,))}
    graphs: dict[str, FxGraph] = {}
    images = [name for name in modalities if name != text and name in used]
    for name in images:
        pixels = [node for node in divided.inputs[name] if node.target != IMAGE_PLACES]
        specs[name] = ModalitySpec(tuple(str(n.target) for n in pixels), f"{model}.encode.{name}", (IMAGE_FEATURES,))
        graphs[f"{model}.encode.{name}"] = extract(
            divided.graph, pixels, [_feature(divided, name)], (IMAGE_FEATURES,), {}
        )
    graphs[model] = _seeing(divided, images[0]) if images else _blind(_reading(divided, text), text)
    ordered = {name: specs[name] for name in modalities if name in specs}
    return graphs, ModalSpec(ordered, tuple(SubsetSpec(subset, model) for subset in subsets))


def _completed(modalities: Modalities, inputs: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """With the inputs that nobody needs to name."""
    named = {each for given in modalities.values() for each in given}
    return {
        name: (*given, *(n for n, beside in _BESIDE.items() if beside in given and n in inputs and n not in named))
        for name, given in modalities.items()
    }


def _feature(divided: Cut, modality: str) -> fx.Node:
    """The one value that is put between words."""
    found = [node for node in divided.features[modality] if node.op != "placeholder"]
    if len(found) != 1:
        raise PassError(
            f"modalities: {modality}: {len(found)} values of it are read by the language model; one is right"
        )
    return found[0]


def _reading(divided: Cut, text: str) -> Cut:
    """The cut with a text's inputs as its features: its embedding stays with the decoder."""
    inputs = divided.inputs[text]
    return Cut(
        divided.graph,
        divided.inputs,
        {**divided.regions, text: frozenset(inputs)},
        {**divided.features, text: tuple(inputs)},
    )


def _blind(divided: Cut, text: str) -> FxGraph:
    """The decoder without any place for images."""
    gone: dict[fx.Node, Any] = {}
    for name in divided.inputs:
        gone |= stand_ins.empty(divided, name) if name != text else {}
    made = stand_ins.without_absent(head(divided, (text,), gone))
    _one_position(made.module.graph)
    made.module.recompile()
    return made


def _one_position(graph: fx.Graph) -> None:
    """Where there is no image, a token is at the same time, row and column: one position instead of three."""
    old = next(node for node in graph.nodes if node.target == POSITION_IDS)
    if len(old.meta["val"].shape) == 2:
        return
    with graph.inserting_before(old):
        new = graph.placeholder(POSITION_IDS)
    new.meta = {"val": old.meta["val"][0], "path": ""}
    with graph.inserting_after(old):
        three = graph.call_function(torch.ops.aten.expand.default, (new, [3, -1, -1]))
    three.meta = dict(old.meta)
    old.replace_all_uses_with(three)
    graph.erase_node(old)


def _seeing(divided: Cut, images: str) -> FxGraph:
    """The decoder with images' features as an input: float32 [places, width]."""
    nodes = {str(n.target): n for n in divided.graph.module.graph.nodes if n.op == "placeholder"}
    inputs = [nodes[INPUT_IDS], nodes[POSITION_IDS], _feature(divided, images), nodes[IMAGE_PLACES]]
    outputs: Any = divided.graph.module.graph.output_node().args[0]
    names = (INPUT_IDS, POSITION_IDS, IMAGE_FEATURES, IMAGE_PLACES)
    made = extract(divided.graph, inputs, outputs, divided.graph.module.meta["outputs"], {}, names)
    features = next(n for n in made.module.graph.nodes if n.target == IMAGE_FEATURES)
    value, places = features.meta["val"], nodes[IMAGE_PLACES].meta["val"]
    with value.fake_mode:
        features.meta["val"] = torch.empty(places.shape[0], value.shape[-1], dtype=value.dtype)
    return made
