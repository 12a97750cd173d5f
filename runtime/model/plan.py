"""What a bundle's plan says of its model: one decoder, or graphs that are run once for each input."""

from __future__ import annotations

from collections.abc import Sequence

from adaptc.runtime.bundle.folder import Bundle
from adaptc.runtime.bundle.manifest import DecoderSpec, Manifest
from adaptc.runtime.bundle.names import ENCODER
from adaptc.runtime.bundle.plan import Run, Switch
from adaptc.runtime.errors import BundleError, RequestError

ENCODER_WRITES_NOTHING = "an encoder, which writes no text; load, and embed or classify, are right"
"""What is said of an encoder where text is to be written or scored."""


def decoder_graph(bundle: Bundle) -> tuple[str, DecoderSpec]:
    """The graph that reads token ids, which is the plan's first except encoders: its name, and what it expects.

    Raises:
        BundleError: the plan is not one decoder.
    """
    manifest = bundle.manifest
    encoders = {each.encoder for modal in manifest.modal.values() for each in modal.modalities.values()}
    first, *rest = (step for step in manifest.plan if step.graphs[0] not in encoders)
    graph = manifest.graphs[first.graphs[0]]
    whole = not rest or (len(rest) == 1 and isinstance(rest[0], Switch))
    refuse_encoder(bundle)
    if not whole or not isinstance(first, Run) or graph.decoder is None:
        raise BundleError(
            f"{bundle.path}: its plan is not one decoder, with or without routes; a newer adaptc may run it"
        )
    return first.graph, graph.decoder


def refuse_encoder(bundle: Bundle) -> None:
    """Refuse an encoder where text is to be written or scored.

    Raises:
        BundleError: the bundle is one.
    """
    if is_encoder(bundle.manifest):
        raise BundleError(f"{bundle.path}: {ENCODER_WRITES_NOTHING}")


def is_modal(manifest: Manifest) -> bool:
    """Whether the model runs once for each input; a language model with modalities is a decoder like any other."""
    return bool(manifest.modal) and all(graph.decoder is None for graph in manifest.graphs.values())


def is_encoder(manifest: Manifest) -> bool:
    """Whether the model is an encoder, which makes vectors of texts, scores of labels, or states of sounds."""
    return ENCODER in manifest.files


def takes_budget(manifest: Manifest, routes: Sequence[str] | None = None) -> bool:
    """Whether a budget changes anything for a bundle: there are skip gates, or a router.

    Args:
        manifest: The bundle's.
        routes: The only routes that are loaded, none of them unknown; None for all. A router needs all.
    """
    switch = manifest.switch
    if switch is None:
        return bool(manifest.gates)
    absent = {graph for route, graph in switch.routes.items() if routes is not None and route not in routes}
    return any(graph not in absent for graph in manifest.gates) or (switch.router is not None and not absent)


def check_budget_fits(
    bundle: Bundle, value: object, option: str = "budget", routes: Sequence[str] | None = None
) -> None:
    """Refuse an option about budgets for a bundle without any use of one: there are neither skip gates nor a router.

    Args:
        bundle: An opened bundle.
        value: The option's; None if it was not given.
        option: Its name.
        routes: See `takes_budget`.

    Raises:
        RequestError: it is such a bundle.
    """
    if value is not None and not takes_budget(bundle.manifest, routes):
        raise RequestError(
            f"{option}: {bundle.path} has neither gates nor a router and always runs whole; leave it out"
        )
