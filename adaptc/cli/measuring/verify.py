"""The command `adaptc verify`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptc.cli.options import BASE, BUNDLE, JSON, ROUTES, THREADS
from adaptc.cli.output import print_columns, print_result
from adaptc.cli.progress import shown_progress

if TYPE_CHECKING:
    from adaptc.verification.part import Part

_SHOWN = (
    "texts",
    "conversations",
    "tensors",
    "largest_error",
    "max_logit_error",
    "max_error",
    "least_cosine",
    "mean_kl",
    "top1_agreement",
)
"""Figures of a part that the text has; the JSON has all."""


@click.command("verify")
@BUNDLE
@click.option(
    "--numbers/--no-numbers", default=True, show_default=True, help="Compare text and numbers with the source too."
)
@click.option("--strict", is_flag=True, help="Fail too if a part could not be compared.")
@ROUTES
@THREADS
@BASE
@JSON
def command(
    bundle: Path, numbers: bool, strict: bool, routes: tuple[str, ...], threads: int | None, base: Path, as_json: bool
) -> None:
    """Check a bundle: hashes, then text, weights and numbers against its source.

    The source is read and run by transformers, and a GGUF file by llama.cpp too where it is installed. Each part is
    passed, failed or not compared, and says what it was compared with.
    """
    import importlib.util

    from adaptc.errors import BundleError
    from adaptc.runtime import open_bundle
    from adaptc.verification.kinds.verify import verify_bundle
    from adaptc.verification.parity import LOSS
    from adaptc.verification.part import not_compared

    opened = open_bundle(bundle)
    weights = opened.manifest.target.weights
    result: dict[str, Any] = {"files": len(opened.manifest.files), "hashes": "ok", "weights": weights}
    absent = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    parts: Sequence[Part] = ()
    failures: list[str] = []
    if numbers and absent:
        click.echo(f"hashes only: {absent[0]} is not installed; pip install 'adaptc[compile]'", err=True)
        parts = (not_compared("source", f"{absent[0]} is not installed"),)
    elif numbers:
        with shown_progress() as progress:
            found = verify_bundle(opened, base, routes, threads, progress)
        parts, failures = found.parts, found.faults
        figures = {route: dataclasses.asdict(parity) for route, parity in found.parity.items()}
        result |= figures.get("", {}) or ({"routes": figures} if figures else {})
        result["limits"] = dataclasses.asdict(LOSS[weights])
    if strict:
        failures += [f"{part.name}: not compared: {part.why[0]}" for part in parts if part.verdict == "not compared"]
    _print(result, parts, not failures, as_json)
    if failures:
        raise BundleError(f"{bundle}: not its source model in {weights}: {'; '.join(failures)}")


def _print(result: Mapping[str, Any], parts: Sequence[Part], passed: bool, as_json: bool) -> None:
    if as_json:
        print_result({**result, "parts": [part.to_json() for part in parts], "passed": passed}, True)
        return
    print_result({name: result[name] for name in ("files", "hashes", "weights")}, False)
    if parts:
        print_columns([(part.name, part.verdict, _what(part)) for part in parts])
    print_result({"passed": passed}, False)


def _what(part: Part) -> str:
    """What a part was compared with, and figures or reasons."""
    shown = [f"{name} {_number(part.figures[name])}" for name in _SHOWN if name in part.figures]
    reasons = part.why if part.verdict == "not compared" else ()
    return "; ".join([*([part.reference] if part.reference else []), *shown, *reasons])


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
