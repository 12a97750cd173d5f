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
from adaptc.ir.weight_names import GATES, is_trained
from adaptc.report.files import record_of, report_files
from adaptc.report.graphs import stored_graph
from adaptc.runtime.bundle.folder import Bundle, write_bundle
from adaptc.runtime.bundle.manifest import GatesFile
from adaptc.runtime.bundle.names import data_file, gates_file
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.model.budget import DENSE

Array = npt.NDArray[np.generic]
Points = tuple[tuple[float, float], ...]


def swap_gates(bundle: Bundle, path: Path) -> Bundle:
    """Replace the trained gates of a bundle: gates, cheap paths and thresholds.

    A quantized cheap path gets codes of the least squared error, without calibration: compiling again may choose them a
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
    names = [name for name, gates in bundle.manifest.gates.items() if gates.policy == "learned"]
    if len(names) != 1 or not bundle.has(gates_file(names[0])):
        raise BundleError(
            f"{bundle.path}: no learned gates; `adaptc compile` with skip_ffn, policy learned, puts some in"
        )
    [name] = names
    metadata, weights = load_gate_arrays(path)
    _check(path, metadata, load_gates_metadata(bundle.file(gates_file(name))), bundle)
    constants = stored_graph(bundle, bundle.manifest.graphs[name].file).initializers.values()
    places = {v.name: v.const_value for v in constants if is_trained(v.name) and v.const_value is not None}
    made = _made(places, weights, 4 if bundle.manifest.target.weights == "int4" else 8)
    data = bytearray(bundle.read(data_file(GATES)))
    for constant, place in places.items():
        assert place.offset is not None
        content = np.ascontiguousarray(made[constant]).tobytes()
        assert len(content) == place.nbytes, f"{constant}: {len(content)} bytes, not {place.nbytes}"
        data[place.offset : place.offset + place.nbytes] = content
    gates = _measured(bundle.manifest.gates[name], metadata)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = replace(
        bundle.manifest,
        gates=bundle.manifest.gates | {name: gates},
        replaced_gates={name: GatesFile(path.name, digest)},
    )
    # What was measured of the gates that are gone says nothing of these.
    record = replace(record_of(bundle), trained={name: metadata.perplexity}, skip_maps={}, added={})
    files: dict[str, Path | bytes] = {data_file(GATES): bytes(data), gates_file(name): path.read_bytes()}
    return write_bundle(bundle.path, files | report_files(manifest, record), manifest, bundle)


def _measured(gates: SkipGates, metadata: GatesMetadata) -> SkipGates:
    """A bundle's gates with what was measured of others for the same layers.

    Where some gates were taken out each threshold still has its meaning, and the shares shrink alike.
    """
    part = len(gates.layers) / len(metadata.layers)

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


def _check(path: Path, metadata: GatesMetadata, old: GatesMetadata, bundle: Bundle) -> None:
    """Refuse gates of another model or form."""
    models = bundle.manifest.models.values()
    if metadata.sha256 not in [model.sha256 for model in models]:
        origin = ", ".join(model.source for model in models)
        raise BundleError(f"{path}: gates of {metadata.model}, other weights than {origin}; train for this model")
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
