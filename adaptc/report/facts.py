"""What a compile did, in the few lines that a person wants to see first."""

from __future__ import annotations

from collections.abc import Iterator

from adaptc.report.drawing.units import megabytes, percent
from adaptc.report.gates import losses, outcomes
from adaptc.report.page import kv_bytes
from adaptc.report.record import Record
from adaptc.runtime.bundle.manifest import Manifest


def facts(manifest: Manifest, *, details: bool = False) -> Iterator[tuple[str, str]]:
    """A bundle in some ten lines, as pairs of a name and a text.

    Args:
        manifest: The bundle's.
        details: Whether each graph, and each number of rows that was timed, has a line too.
    """
    for name, model in manifest.models.items():
        licence = f", {model.licence}" if model.licence else ""
        yield f"model {name}", f"{model.source} ({model.architecture}{licence})"
    target = manifest.target
    writes = any(graph.decoder is not None for graph in manifest.graphs.values())
    length = f", {target.max_tokens} tokens, batch {target.batch}" if writes else ""
    yield "target", f"{target.backend}, {target.weights} weights{length}"
    if writes:
        yield "a token reads", _read(manifest)
        yield "KV cache", f"{megabytes(kv_bytes(manifest))} a sequence"
    for name, modal in manifest.modal.items():
        yield f"subsets of {name}", ", ".join("+".join(subset.modalities) for subset in modal.subsets)
    for name, gates in manifest.gates.items():
        most = gates.thresholds[-1][0] if gates.thresholds else 0.0
        able = f"{len(gates.layers)} of {gates.blocks} feed-forward blocks"
        apart = ", by each sequence for itself" if gates.batch == "rows" else ""
        yield f"gates of {name}", f"{gates.policy}, on {able}; up to {percent(most)} are skipped{apart}"
        if gates.written_loss:
            yield f"expected loss of {name}", f"{losses(gates)} skipped, nats a token that is written; see --max-loss"
        if 0 < (pays := manifest.pays_from(name)) < 1:
            yield f"gates of {name} pay", f"from {percent(pays)} of all blocks on, as measured where it was compiled"
    for name, verdict in manifest.gate_verdicts.items():
        yield f"{'kept' if verdict.pays else 'removed'} gates of {name}", verdict.why
        if verdict.each:
            yield f"each gate of {name}", outcomes(verdict) + ("" if details else "; adaptc -v compile lists them")
        for times in verdict.rows if details else ():
            named = ((times.apart, "each for itself"), (times.adaptive, "together"), (times.dense, "without gates"))
            said = ", ".join(f"{time * 1e3:.2f} ms {name}" for time, name in named if time)
            yield f"{times.rows} sequences in a step", said
    for name, gates_file in manifest.replaced_gates.items():
        yield f"gates of {name} replaced", f"by {gates_file.file}, sha256 {gates_file.sha256[:16]}"
    if details:
        yield from ((f"graph {name}", f"{graph.nodes} nodes") for name, graph in manifest.graphs.items())
    size = sum(record.bytes for record in manifest.files.values())
    if size:
        yield "bundle", f"{megabytes(size)} in {len(manifest.files)} files; graphs: {len(manifest.graphs)}"


def source_facts(record: Record, *, details: bool = False) -> Iterator[tuple[str, str]]:
    """What became of the weights of quantized sources, in a line; nothing where they were rounded anew.

    Args:
        record: What a bundle's report says beyond the manifest.
        details: Whether each kind of tensor has a line too.
    """
    kinds = record.source_weights
    if not kinds:
        return
    tensors, exact = (sum(counts) for counts in zip(*((k.tensors, k.exact) for k in kinds.values()), strict=True))
    near = {name: kind.error for name, kind in kinds.items() if kind.exact < kind.tensors}
    worst = max(near, key=lambda name: near[name], default="")
    rest = f", the others within {near[worst]:.2%} of their size ({worst})" if near else ""
    yield "source's weights", f"{exact} of {tensors} tensors as they are{rest}"
    for name, kind in kinds.items() if details else ():
        off = f", off by {kind.error:.2%}" if kind.exact < kind.tensors else ", exact"
        yield f"weights {name}", f"{kind.tensors} tensors: {kind.form}{off}"


def _read(manifest: Manifest) -> str:
    """Weight bytes of a step, of each route if there are several."""
    routes = [f"{megabytes(size)} on {name}" for costs in manifest.route_bytes.values() for name, size in costs.items()]
    return f"{', '.join(routes) or megabytes(manifest.bytes_per_token)} of weights"
