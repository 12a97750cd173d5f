"""Print the table of docs/results/verify.md: `python -m tests.verification.figures`."""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from unittest.mock import patch

from adaptc.compiler.cache import Cache
from adaptc.compiler.driver import compile_spec
from adaptc.runtime import Bundle
from adaptc.sources.folder.source import FolderSource
from adaptc.spec.reading import parse_spec
from adaptc.verification import probes
from adaptc.verification.kinds.verify import verify_bundle
from tests.verification import wrong

WEIGHTS = ("fp32", "fp16", "int8", "int4")


def row(name: str, bundles: dict[str, Bundle], base: Path) -> str:
    """What `verify` finds of bundles of each kind of weights: lowering's largest error / the loss's mean KL."""
    cells = [name]
    for bundle in bundles.values():
        [model] = bundle.manifest.models.values()
        with patch.object(FolderSource, "sha256", lambda self, known=model.sha256: known):
            parts = {part.name: part for part in verify_bundle(bundle, base, threads=1).parts}
        failed = [each for each, part in parts.items() if part.verdict == "failed"]
        logit, kl = parts["lowering"].figures["max_logit_error"], parts["loss"].figures["mean_kl"]
        largest = parts["weights"].figures["largest_error"]
        cells.append(f"{logit:.1g} / {kl:.1g} / {largest:.1g}; {', '.join(failed) or 'passed'}")
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    """Compile the tiny source in every kind of weights, and verify each as it is and against every fault."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        patch("adaptc.verification.kinds.source.texts", partial(probes.texts, drawn=0)),
    ):
        source = wrong.write(Path(scratch))
        specs = {each: parse_spec(wrong.SPEC.format(weights=each), "model.yaml") for each in WEIGHTS}
        cache = Cache(source / "cache")
        bundles = {each: compile_spec(spec, source, source / each, cache).bundle for each, spec in specs.items()}
        sys.stdout.write(row("none", bundles, source))
        for number, (name, change) in enumerate(wrong.MODELS.items()):
            sys.stdout.write(row(name, bundles, wrong.changed(source, source / f"wrong{number}", change)))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
