"""From a bundle's partitions, and an engine that runs them, to a decoder on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from adaptc.runtime.backends.cuda.bundle_partitions import decoder_graphs
from adaptc.runtime.backends.cuda.decoder import GpuDecoder
from adaptc.runtime.backends.cuda.driver.cuda import Cuda
from adaptc.runtime.backends.cuda.graph import GpuResources, row_sizes
from adaptc.runtime.backends.cuda.machinery import GraphForm, PartitionForm
from adaptc.runtime.backends.cuda.memory import DeviceWeights, SharedValues
from adaptc.runtime.backends.cuda.partition_runner import PartitionRunner
from adaptc.runtime.backends.cuda.routes import GpuRoutes
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.partitions import Partitions
from adaptc.runtime.model.decoder import state_width
from adaptc.runtime.model.router import router_of


def cuda_decoder(
    cuda: Cuda,
    runner: PartitionRunner,
    bundle: Bundle,
    parts: Mapping[str, Partitions],
    batch: int,
    chunk: int,
    mode: str = "on_device",
    *,
    dense: bool = False,
) -> GpuDecoder | GpuRoutes:
    """Put a bundle's decoder, or its trunk and tails, onto a GPU.

    Args:
        cuda: The GPU.
        runner: What runs the partitions.
        bundle: Has weights, gates and the router.
        parts: As `partitions_of` gives them.
        batch: Most sequences written at the same time.
        chunk: Most tokens of a prompt read at once.
        mode: The execution mode: "on_device", "one_step_late".
        dense: Whether requests that name no budget run every block, whatever the bundle's gates say.
    """
    sizes, chunk = row_sizes(runner, batch), min(chunk, runner.tokens())
    [data] = {partitions.data for partitions in parts.values()}
    weights = DeviceWeights(cuda, bundle.file(data))
    values = SharedValues(cuda, parts.values(), max(sizes[-1], chunk))
    gpu = GpuResources(cuda, cuda.stream(), runner, values, sizes, chunk, mode)
    forms = {name: PartitionForm(cuda, partitions, runner, weights, values) for name, partitions in parts.items()}
    return decoder_of(gpu, bundle, forms, batch, dense=dense)


def decoder_of(
    gpu: GpuResources, bundle: Bundle, forms: Mapping[str, GraphForm], batch: int, *, dense: bool = False
) -> GpuDecoder | GpuRoutes:
    """A decoder from its graph, or from its trunk and tails.

    Args:
        gpu: The GPU and what runs on it.
        bundle: Has gates and the router.
        forms: Graphs by name, the trunk first.
        batch: Most sequences written at the same time.
        dense: Whether requests that name no budget run every block, whatever the bundle's gates say.
    """
    specs, gates = decoder_graphs(bundle), bundle.manifest.gates
    if dense:
        gates = {name: replace(each, budget=1.0) for name, each in gates.items()}
    given = {name: (form, specs[name], gates.get(name)) for name, form in forms.items()}
    first, *_ = given
    switch = bundle.manifest.switch
    if switch is None:
        form, spec, gate = given[first]
        return GpuDecoder(gpu, form, spec, batch, gate)
    width = state_width(bundle.manifest.graphs[first].outputs)
    assert width is not None
    tails = {route: given[name] for route, name in switch.routes.items()}
    return GpuRoutes(gpu, given[first], tails, width, batch, router_of(bundle, switch))
