"""A manifest agrees with itself: what it refers to is there, names stay inside the bundle, and sizes can be.

A manifest with a hash that fits may still have been written by anyone, so nothing that is allocated, indexed or opened
after it was read may depend on a number or a name that was not looked at here.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

from adaptc.runtime.bundle.adapters import AdaptedGraph, name_fault
from adaptc.runtime.bundle.cache_window import LEAST_SLACK, ROLLBACK
from adaptc.runtime.bundle.manifest import DecoderSpec, GraphSpec, Manifest, ModalSpec, TensorSpec
from adaptc.runtime.bundle.names import MANIFEST
from adaptc.runtime.bundle.plan import Run, Switch
from adaptc.runtime.bundle.skip_gates import SkipGates
from adaptc.runtime.errors import BundleError

_TOKENS = 1 << 28  # of a vocabulary, or of a KV cache: more than any model has, and few enough to count in 32 bits
_LAYERS = 1 << 12
_WIDTH = 1 << 20  # heads, or the size of one
_ROWS = 1 << 20
_SIZE = 1 << 40  # one dimension of a tensor
_DTYPES = frozenset(
    {
        *("float16", "bfloat16", "float32", "float64", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    }
)


def check_manifest(manifest: Manifest) -> None:
    """Refuse a manifest that does not agree with itself.

    Raises:
        BundleError: naming the place.
    """
    _check_names(manifest.files)
    _count("target.batch", manifest.target.batch, 1, _ROWS)
    for name, graph in manifest.graphs.items():
        _check_graph(manifest, f"graphs.{name}", graph)
    for name, gates in manifest.gates.items():
        _check_gates(manifest, f"gates.{name}", name, gates)
    if manifest.draft and manifest.draft not in manifest.graphs:
        raise BundleError(f"draft: no graph {manifest.draft!r}; there are: {', '.join(manifest.graphs)}")
    for name, graphs in manifest.verification.items():
        for each in (name, *(verifying.graph for verifying in graphs)):
            if each not in manifest.graphs:
                raise BundleError(f"verification.{name}: no graph {each!r}; there are: {', '.join(manifest.graphs)}")
        for index, verifying in enumerate(graphs):
            _count(f"verification.{name}[{index}].tokens", verifying.tokens, 2, _ROWS)
    for name, adapted in manifest.adapters.items():
        _check_adapters(manifest, f"adapters.{name}", name, adapted)
    for model, modal in manifest.modal.items():
        _check_modal(manifest, f"modal.{model}", modal)
    if not manifest.plan:
        raise BundleError("plan: no step; at least one is needed")
    for index, step in enumerate(manifest.plan):
        _check_step(manifest, f"plan[{index}]", step)


def check_name(name: str) -> None:
    """Refuse a name that is not of a file inside the bundle, on any system.

    Raises:
        BundleError: naming it.
    """
    parts = PurePosixPath(name).parts
    plain = name and name == "/".join(parts) and ".." not in parts and not name.startswith("/")
    if not plain or name == MANIFEST or any(each in "\\:" or not each.isprintable() for each in name):
        raise BundleError(f"file {name!r}: not a plain path inside the bundle")


def _check_names(names: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        check_name(name)
        # Some file systems take names for the same that differ in case, or in how an accent is written.
        same = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if same != name:
            raise BundleError(f"file {name!r}: some file systems take it for {same!r}; another name is right")


def _check_graph(manifest: Manifest, where: str, graph: GraphSpec) -> None:
    for name in (graph.file, *graph.data):
        if name not in manifest.files:
            raise BundleError(f"{where}: {name!r} is not among the bundle's files")
    for side, tensors in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        for index, tensor in enumerate(tensors):
            _check_tensor(f"{where}.{side}[{index}]", tensor)
    if graph.decoder is not None:
        _check_decoder(f"{where}.decoder", graph.decoder)


def _check_tensor(where: str, tensor: TensorSpec) -> None:
    if tensor.dtype not in _DTYPES:
        raise BundleError(f"{where}.dtype: {tensor.dtype!r}; there are: {', '.join(sorted(_DTYPES))}")
    for index, size in enumerate(tensor.shape):
        if isinstance(size, int):
            _count(f"{where}.shape[{index}]", size, 0, _SIZE)


def _check_decoder(where: str, spec: DecoderSpec) -> None:
    _count(f"{where}.vocab_size", spec.vocab_size, 1, _TOKENS)
    _count(f"{where}.max_tokens", spec.max_tokens, 1, _TOKENS)
    _count(f"{where}.kv: layers", len(spec.kv), 0, _LAYERS)
    for layer, sizes in enumerate(spec.kv):
        for size in sizes:
            _count(f"{where}.kv[{layer}]", size, 1, _WIDTH)
    _check_windows(where, spec)
    if spec.bos_token_id is not None:
        # Some models have an embedding for a token more than they have logits, so this is no limit of the vocabulary.
        _count(f"{where}.bos_token_id", spec.bos_token_id, 0, _TOKENS)


def _check_windows(where: str, spec: DecoderSpec) -> None:
    seen = set[int]()
    for index, each in enumerate(spec.windows):
        place = f"{where}.windows[{index}]"
        _count(f"{place}.window", each.window, 1, _TOKENS)
        _count(f"{place}.positions", each.positions, each.window + ROLLBACK + LEAST_SLACK, spec.max_tokens)
        for layer in each.layers:
            _count(f"{place}.layers", layer, 0, len(spec.kv) - 1)
            if layer in seen:
                raise BundleError(f"{place}.layers: {layer} is there twice; a layer has one window")
            seen.add(layer)


def _check_gates(manifest: Manifest, where: str, name: str, gates: SkipGates) -> None:
    for each in (name, gates.dense or name):
        if each not in manifest.graphs:
            raise BundleError(f"{where}: no graph {each!r}; there are: {', '.join(manifest.graphs)}")
    _count(f"{where}.layers: gates", len(gates.layers), 1, _LAYERS)
    _count(f"{where}.blocks", gates.blocks, len(gates.layers), _LAYERS)
    _count(f"{where}.warmup", gates.warmup, 0, _TOKENS)
    _count(f"{where}.rows", gates.rows, 0, _ROWS)
    _count(f"{where}.thresholds: points", len(gates.thresholds), 1, _ROWS)
    shares = [share for share, _ in gates.thresholds]
    if shares != sorted(shares) or not all(0 <= share <= 1 for share in shares):
        raise BundleError(f"{where}.thresholds: shares that rise from 0 to 1 are needed")
    if gates.written:
        shares = [share for share, _ in gates.written]
        if len(shares) > _ROWS or shares != sorted(shares) or not all(0 <= share <= 1 for share in shares):
            raise BundleError(f"{where}.written: shares that rise from 0 to 1 are needed")
    if gates.written_loss:
        points = gates.written_loss
        rises = list(points) == sorted(points) and [loss for _, loss in points] == sorted(loss for _, loss in points)
        if len(points) > _ROWS or points[0] != (0, 0) or not rises or points[-1][0] > 1:
            raise BundleError(f"{where}.written_loss: shares up to 1 and losses, both rising from 0, are needed")
    if not 0 <= gates.budget <= 1:
        raise BundleError(f"{where}.budget: {gates.budget}; 0 to 1 is needed")


def _check_adapters(manifest: Manifest, where: str, name: str, adapted: AdaptedGraph) -> None:
    for each in (name, adapted.graph, adapted.dense or name):
        if each not in manifest.graphs:
            raise BundleError(f"{where}: no graph {each!r}; there are: {', '.join(manifest.graphs)}")
    _count(f"{where}.adapters: adapters", len(adapted.adapters), 1, _ROWS)
    seen = set[str]()
    for index, adapter in enumerate(adapted.adapters):
        if (fault := name_fault(adapter.name)) is not None:
            raise BundleError(f"{where}.adapters[{index}].name: {fault}")
        if adapter.name in seen:
            raise BundleError(
                f"{where}.adapters[{index}].name: {adapter.name!r} is there twice; a name of its own is right"
            )
        seen.add(adapter.name)
        _count(f"{where}.adapters[{index}].rank", adapter.rank, 1, _WIDTH)
        _count(f"{where}.adapters[{index}].bytes", adapter.bytes, 1, 1 << 62)


def _check_modal(manifest: Manifest, where: str, modal: ModalSpec) -> None:
    encoders = [each.encoder for each in modal.modalities.values() if each.encoder is not None]
    for name in (*encoders, *(subset.graph for subset in modal.subsets)):
        if name not in manifest.graphs:
            raise BundleError(f"{where}: no graph {name!r}; there are: {', '.join(manifest.graphs)}")
    if not modal.subsets:
        raise BundleError(f"{where}.subsets: none; at least one is needed")
    for index, subset in enumerate(modal.subsets):
        for name in subset.modalities:
            if name not in modal.modalities:
                there = ", ".join(modal.modalities)
                raise BundleError(f"{where}.subsets[{index}]: no modality {name!r}; there are: {there}")


def _check_step(manifest: Manifest, where: str, step: Run | Switch) -> None:
    for name in step.graphs:
        if name not in manifest.graphs:
            raise BundleError(f"{where}: no graph {name!r}; there are: {', '.join(manifest.graphs)}")
    if isinstance(step, Run):
        return
    if not step.routes:
        raise BundleError(f"{where}: routes: none; at least one is needed")
    costs = manifest.route_bytes.get(step.gate, {})
    if costs.keys() != step.routes.keys():
        raise BundleError(f"route_bytes.{step.gate}: other routes than the plan's; {', '.join(step.routes)} are right")
    for route, cost in costs.items():
        _count(f"route_bytes.{step.gate}.{route}", cost, 1, 1 << 62)
    if step.router is not None and step.router.file not in manifest.files:
        raise BundleError(f"{where}: {step.router.file!r} is not among the bundle's files")


def _count(where: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise BundleError(f"{where}: {value}; {least} to {most} is needed")
