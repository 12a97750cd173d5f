"""Put other gates into a bundle: their weights lie in a file of their own, so nothing is compiled again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adaptc.errors import BundleError
from adaptc.ir.blocks import Bits, nearest_blocks
from adaptc.ir.stored.gates_file import GatesMetadata, load_gate_arrays, load_gates_metadata
from adaptc.ir.stored.onnx_file import StoredTensor
from adaptc.ir.weight_names import GATES, is_trained, named_after, owner_of
from adaptc.report.files import record_of, report_files
from adaptc.report.graphs import stored_graph
from adaptc.runtime.bundle.folder import Bundle, write_bundle
from adaptc.runtime.bundle.manifest import GatesFile, Manifest
from adaptc.runtime.bundle.names import data_file, gates_file
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.budget import DENSE

Array = npt.NDArray[np.generic]
Points = tuple[tuple[float, float], ...]


def swap_gates(bundle: Bundle, path: Path) -> Bundle:
    """Replace the trained gates of one of a bundle's models: gates, cheap paths and thresholds.

    Of a stitched bundle they are those of all graphs that have layers of the model, the trunk as the routes' tails. A
    quantized cheap path gets codes of the least squared error, without calibration: compiling again may choose them a
    little better.

    Args:
        bundle: With learned gates.
        path: A file of `adaptc train` for the same model, layers and rank.

    Returns:
        The bundle, written anew in its place.

    Raises:
        BundleError: the bundle has no learned gates, or the file's are of another model, other layers or another rank.
        LoadError: the file cannot be read, or has NaN.
    """
    manifest = bundle.manifest
    learned = [name for name, gates in manifest.gates.items() if gates.policy == "learned"]
    if not learned or not any(bundle.has(gates_file(model)) for model in manifest.models):
        raise BundleError(
            f"{bundle.path}: no learned gates; `adaptc compile` with skip_ffn, policy learned, puts some in"
        )
    metadata, weights = load_gate_arrays(path)
    model = _model_of(path, metadata, bundle)
    _check(path, metadata, load_gates_metadata(bundle.file(gates_file(model))))
    found = {name: _places(bundle, name, model) for name in learned}
    graphs = {name: places for name, places in found.items() if places}
    data = bytearray(bundle.read(data_file(GATES)))
    for name, places in graphs.items():
        named = weights if name == model else {named_after(model, key): value for key, value in weights.items()}
        made = _made(places, named, 4 if manifest.target.weights == "int4" else 8)
        for constant, place in places.items():
            assert place.offset is not None
            content = np.ascontiguousarray(made[constant]).tobytes()
            assert len(content) == place.nbytes, f"{constant}: {len(content)} bytes, not {place.nbytes}"
            data[place.offset : place.offset + place.nbytes] = content
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    swapped = {name: _measured(manifest.gates[name], _judged(manifest, name, metadata), metadata) for name in graphs}
    manifest = replace(
        manifest,
        gates={**manifest.gates, **swapped},
        replaced_gates={**manifest.replaced_gates, **dict.fromkeys(graphs, GatesFile(path.name, digest))},
    )
    # What was measured of the gates that are gone says nothing of these.
    trained = {name: metadata.perplexity for name in graphs if name == model}
    record = replace(record_of(bundle), trained=trained, skip_maps={}, added={})
    files: dict[str, Path | bytes] = {data_file(GATES): bytes(data), gates_file(model): path.read_bytes()}
    return write_bundle(bundle.path, files | report_files(manifest, record), manifest, bundle)


def _places(bundle: Bundle, graph: str, model: str) -> dict[str, StoredTensor]:
    """The constants of a graph that were trained for a model's gates, and where they lie, by name."""
    constants = stored_graph(bundle, bundle.manifest.graphs[graph].file).initializers.values()
    found = {v.name: v.const_value for v in constants if is_trained(v.name) and v.const_value is not None}
    return {name: place for name, place in found.items() if graph == model or owner_of(name, [model])}


def _judged(manifest: Manifest, graph: str, metadata: GatesMetadata) -> int:
    """How many gates of the file a graph had before those were taken out that do not pay."""
    verdict = manifest.gate_verdicts.get(graph)
    if verdict is not None:
        return verdict.payoff.gates
    return len(metadata.layers if graph in manifest.models else manifest.gates[graph].layers)


def _measured(gates: SkipGates, judged: int, metadata: GatesMetadata) -> SkipGates:
    """A graph's gates with what was measured of others for the same layers.

    Where some gates were taken out each threshold still has its meaning, and the shares shrink alike.

    Args:
        gates: The graph's.
        judged: How many there were before.
        metadata: Of the others.
    """
    part = len(gates.layers) / judged

    def shrunk(points: Points) -> Points:
        return tuple((share * part, value) for share, value in points)

    written = ((0.0, DENSE), *shrunk(metadata.written)) if metadata.written else ()
    return replace(
        gates,
        warmup=max(gates.warmup, metadata.warmup),
        thresholds=((0.0, DENSE), *shrunk(metadata.thresholds)),
        written=written,
        written_loss=shrunk(metadata.written_loss),
    )


def _model_of(path: Path, metadata: GatesMetadata, bundle: Bundle) -> str:
    """The model of a bundle that gates were trained for."""
    models = bundle.manifest.models
    found = [name for name, model in models.items() if model.sha256 == metadata.sha256]
    if not found:
        origin = ", ".join(model.source for model in models.values())
        raise BundleError(f"{path}: gates of {metadata.model}, other weights than {origin}; train for this model")
    with_gates = [name for name in found if bundle.has(gates_file(name))]
    if not with_gates:
        raise BundleError(f"{path}: gates of {metadata.model}; this bundle has none of it: compile again with them")
    return with_gates[0]


def _check(path: Path, metadata: GatesMetadata, old: GatesMetadata) -> None:
    """Refuse gates of another form."""
    for what, new, right in (("layers", metadata.layers, old.layers), ("rank", metadata.rank, old.rank)):
        if new != right:
            shown = [list(each) if isinstance(each, tuple) else each for each in (new, right)]
            raise BundleError(f"{path}: {what} {shown[0]}; this bundle's are {shown[1]}: compile again for others")


def _made(
    places: Mapping[str, StoredTensor], weights: Mapping[str, npt.NDArray[np.float32]], bits: Bits
) -> dict[str, Array]:
    """Weights in the form the target has them, by the names of the graph's constants, fused or not."""
    stems = [name.removesuffix(".down") for name in weights if name.endswith(".cheap.down")]
    fused = {
        f"{stem}.gate_up_proj.weight": np.concatenate([weights[f"{stem}.gate"], weights[f"{stem}.up"]])
        for stem in stems
    }
    found: dict[str, Array] = {}
    for name, array in {**weights, **fused}.items():
        codes = places.get(f"{name}.codes")
        if codes is not None:
            size = codes.shape[2] * 8 // bits
            blocks = nearest_blocks(array, bits, size, symmetric=f"{name}.zeros" not in places)
            found |= {f"{name}.codes": blocks.packed, f"{name}.scales": blocks.scales}
            found |= {f"{name}.zeros": blocks.zero_points} if blocks.zero_points is not None else {}
        else:
            found |= {name: array, f"{name}.fp16": array.astype(np.float16)}
    return found
