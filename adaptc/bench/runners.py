"""The engines that can be measured here, and what would help where one cannot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adaptc.bench.comparison import Runner
from adaptc.bench.peer_models import model_of
from adaptc.bench.peers import ADAPTC, PEERS
from adaptc.compiler.cache import Cache
from adaptc.errors import LoadError
from adaptc.evaluation.reference import source_of
from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.progress import SILENT, Progress


def runners_of(
    bundle: Bundle,
    names: Sequence[str],
    routes: Sequence[str],
    base: Path,
    cache: Cache,
    progress: Progress = SILENT,
) -> tuple[list[Runner], dict[str, str]]:
    """The engines that can be measured on a bundle's model.

    Args:
        bundle: An opened bundle; it is measured by each of `routes`, or once if there are none.
        names: Peers to measure beside it, of `PEERS`.
        routes: Routes of a stitched bundle.
        base: The folder that paths in the bundle's spec start from.
        cache: Where converted models are kept.
        progress: Told of stages and steps.

    Returns:
        adaptc first, then its peers; and by name, for each peer that cannot be measured, what would help.

    Raises:
        LoadError: a peer is installed, and the bundle's source model is not there or has changed.
    """
    runners = [Runner(ADAPTC, bundle.path, route) for route in routes or (None,)]
    missing = {name: f"not installed; {PEERS[name].install}" for name in names if not PEERS[name].installed}
    installed = [PEERS[name] for name in names if name not in missing]
    if installed:
        source, sha256 = source_of(bundle, base), next(iter(bundle.manifest.models.values())).sha256
        for peer in installed:
            try:
                runners.append(Runner(peer, model_of(peer.form, source, sha256, cache, progress)))
            except LoadError as error:
                missing[peer.name] = str(error)
    return runners, missing
