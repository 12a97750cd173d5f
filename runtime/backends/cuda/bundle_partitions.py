"""The partitions of a bundle: of its decoder, or of each part of a stitched one."""

from __future__ import annotations

from collections.abc import Mapping

from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.gpu_steps.device_step import DeviceStep
from adaptc.runtime.bundle.gpu_steps.step_checks import check_step
from adaptc.runtime.bundle.manifest import DecoderSpec
from adaptc.runtime.bundle.names import step_file
from adaptc.runtime.bundle.partitions import PartitionGraph, Partitions
from adaptc.runtime.bundle.plan import Run, Switch
from adaptc.runtime.errors import BundleError
from adaptc.runtime.model.decoder import state_width


def decoder_graphs(bundle: Bundle) -> dict[str, DecoderSpec]:
    """The decoder of a bundle, or the parts of a stitched one, the trunk first: how to generate with each, by name.

    Raises:
        BundleError: the plan is another one.
    """
    first, *rest = bundle.manifest.plan
    known = isinstance(first, Run) and all(isinstance(step, Switch) for step in rest) and len(rest) < 2
    specs = {name: bundle.manifest.graphs[name].decoder for step in bundle.manifest.plan for name in step.graphs}
    found = {name: spec for name, spec in specs.items() if spec is not None}
    if not known or len(found) < len(specs):
        raise BundleError(f"{bundle.path}: its plan is not one decoder, with or without routes; TensorRT runs no other")
    return found


def decoder_graph(bundle: Bundle) -> tuple[str, DecoderSpec]:
    """The graph of a bundle that reads token ids: its name, and how to generate with it.

    Raises:
        BundleError: the plan is not one decoder, with or without routes.
    """
    return next(iter(decoder_graphs(bundle).items()))


def has_steps(bundle: Bundle) -> bool:
    """Whether a bundle's decoder has its step as GPU kernels too."""
    try:
        return all(bundle.has(step_file(name)) for name in decoder_graphs(bundle))
    except BundleError:  # its plan is no decoder
        return False


def read_steps(bundle: Bundle) -> dict[str, DeviceStep]:
    """The step of a bundle's decoder as GPU kernels, or of each part of a stitched one.

    Raises:
        BundleError: it has none, or a file is damaged or has sizes that do not go with each other.
    """
    found = {}
    specs = decoder_graphs(bundle)
    width = state_width(bundle.manifest.graphs[next(iter(specs))].outputs) or 0
    for name, spec in specs.items():
        file = step_file(name)
        if not bundle.has(file):
            raise BundleError(
                f"{bundle.path}: its model runs on a CPU only, or an older adaptc compiled it; compile again, with "
                "--set target.device=cuda to be told what no GPU kernel computes"
            )
        try:
            found[name] = DeviceStep.from_json(bundle.read(file))
            check_step(found[name], spec, width)
        except BundleError as error:
            raise BundleError(f"{bundle.path / file}: {error}") from error
        for weight in found[name].weights.values():
            if not bundle.has(weight.file):
                raise BundleError(f"{bundle.path / file}: {weight.file!r} is not among the bundle's files")
    return found


def read_partitions(bundle: Bundle, name: str) -> Partitions:
    """The partitions of a graph.

    Raises:
        BundleError: the bundle was not compiled for TensorRT, or the file is damaged.
    """
    file = f"partitions/{name}.json"
    if not bundle.has(file):
        if bundle.has(f"regions/{name}.json"):
            raise BundleError(f"{bundle.path}: compiled by an older adaptc; compile it again")
        backend = bundle.manifest.target.backend
        raise BundleError(f"{bundle.path}: compiled for {backend}; compile with target.backend: tensorrt")
    content = bundle.read(file)
    try:
        partitions = Partitions.from_json(content)
    except BundleError as error:
        raise BundleError(f"{bundle.path / file}: {error}") from error
    for graph in partitions.graphs.values():
        if not bundle.has(graph.file):
            raise BundleError(f"{bundle.path / file}: {graph.file!r} is not among the bundle's files")
    if not bundle.has(partitions.data):
        raise BundleError(f"{bundle.path / file}: {partitions.data!r} is not among the bundle's files")
    return partitions


def partitions_of(bundle: Bundle) -> dict[str, Partitions]:
    """The partitions of a bundle's decoder, or of each part of a stitched one, whose graphs' names then say of which.

    Raises:
        BundleError: the bundle is not for TensorRT.
    """
    names = list(decoder_graphs(bundle))
    found = {name: read_partitions(bundle, name) for name in names}
    return {name: partitions.called(f"{name}/") for name, partitions in found.items()} if len(names) > 1 else found


def graphs_of(parts: Mapping[str, Partitions]) -> dict[str, PartitionGraph]:
    """All graphs of several partitions, by name."""
    return {name: graph for partitions in parts.values() for name, graph in partitions.graphs.items()}
