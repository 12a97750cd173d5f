"""What a compile did, for people: `report.json`, `report.html`, and lines for the terminal."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator

from adaptc.runtime.bundle.manifest import Manifest
from adaptc.runtime.bundle.strict_json import to_json

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 3rem auto; padding: 0 1rem; color: #1d2433 }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem }
p.lead { color: #5a6478; margin-top: 0 }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .35rem .8rem .35rem 0 }
th { color: #5a6478; font-weight: 500; border-bottom: 1px solid #d9dee8 } td { border-bottom: 1px solid #eef1f6 }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
code { font-size: .92em } .none { color: #9aa3b5 }
"""


def facts(manifest: Manifest, *, every_gate: bool = True) -> Iterator[tuple[str, str]]:
    """The few lines a person wants to see first, as pairs of a name and a text.

    Args:
        manifest: Manifest of a bundle.
        every_gate: Whether each gate that was judged by itself has a line; else one line counts them.
    """
    for name, model in manifest.models.items():
        licence = f", {model.licence}" if model.licence else ""
        yield f"model {name}", f"{model.source} ({model.architecture}{licence})"
    target = manifest.target
    writes = any(graph.decoder is not None for graph in manifest.graphs.values())
    length = f", {target.max_tokens} tokens, batch {target.batch}" if writes else ""
    yield "target", f"{target.backend}, {target.weights} weights{length}"
    if writes:
        yield "weights read per token", f"{manifest.bytes_per_token / 1e6:.1f} MB"
    for name, modal in manifest.modal.items():
        yield f"subsets of {name}", ", ".join("+".join(subset.modalities) for subset in modal.subsets)
    twins = {gates.dense for gates in manifest.gates.values()}  # they share their graphs' caches
    for name, graph in manifest.graphs.items():
        if graph.decoder is not None and name not in twins:
            cache = sum(2 * heads * width for heads, width in graph.decoder.kv) * graph.decoder.max_tokens * 4
            yield f"KV cache of {name}", f"{cache / 1e6:.1f} MB a sequence"
        yield f"graph {name}", f"{graph.nodes} nodes"
    for name, gates in manifest.gates.items():
        yield f"gates of {name}", f"{gates.policy}, {len(gates.layers)} of {gates.blocks} feed-forward blocks"
    for name, verdict in manifest.gate_verdicts.items():
        yield f"{'kept' if verdict.pays else 'removed'} gates of {name}", verdict.why
        for decision in verdict.each if every_gate else ():
            yield f"gate of layer {decision.layer}", decision.why
        if verdict.each and not every_gate:
            own = sum(decision.leader == decision.layer for decision in verdict.each)
            removed = sum(decision.leader is None for decision in verdict.each)
            shared = len(verdict.each) - own - removed
            counts = f"{own} decide for themselves, {shared} follow a neighbour's gate, {removed} were removed"
            yield f"each gate of {name}", f"{counts}; -v lists them"
        for times in verdict.rows:
            both = f"{times.adaptive * 1e3:.2f} ms skipping, {times.dense * 1e3:.2f} ms running every block"
            yield f"{times.rows} sequences in a step", both
    for name, gates_file in manifest.replaced_gates.items():
        yield f"gates of {name} replaced", f"by {gates_file.file}, sha256 {gates_file.sha256[:16]}"
    size = sum(record.bytes for record in manifest.files.values())
    if size:
        yield "bundle", f"{size / 1e6:.1f} MB in {len(manifest.files)} files"


def report_json(manifest: Manifest) -> str:
    """What was done and measured, for programs."""
    measured = ("bytes_per_token", "route_bytes", "gate_verdicts", "replaced_gates")
    keys = ("models", "target", "passes", "versions", *measured)
    content = to_json(manifest)
    return json.dumps({key: content[key] for key in keys}, indent=2) + "\n"


def report_html(title: str, manifest: Manifest) -> str:
    """What was done and measured, as a page that needs nothing but itself."""
    rows = "".join(f"<tr><td>{_text(k)}</td><td>{_text(v)}</td></tr>" for k, v in facts(manifest))
    passes = "".join(
        f"<tr><td><code>{_text(p.name)}</code></td><td>{_options(p.options)}</td>"
        f"<td>{'rewrote' if p.changed else '<span class=none>nothing to do</span>'}</td>"
        f"<td class=number>{p.seconds:.2f}</td></tr>"
        for p in manifest.passes
    )
    versions = ", ".join(f"{_text(k)} {_text(v)}" for k, v in manifest.versions.items())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(title)}: adaptc report</title>"
        f"<style>{STYLE}</style><h1>{_text(title)}</h1><p class=lead>compiled by adaptc {_text(manifest.adaptc)}</p>"
        f"<table>{rows}</table><h2>Passes, in order</h2><table><tr><th>pass<th>options<th>result"
        f"<th class=number>seconds</tr>{passes}</table><h2>Versions</h2><p>{versions}</p></html>\n"
    )


def _options(options: dict[str, object]) -> str:
    return ", ".join(f"{_text(k)}: {_text(v)}" for k, v in options.items()) or "<span class=none>none</span>"


def _text(value: object) -> str:
    return html.escape(str(value))
