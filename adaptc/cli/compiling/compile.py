"""The command `adaptc compile`."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptc.cli.model_argument import MODEL, model_options, read_model
from adaptc.cli.options import CACHE, open_cache
from adaptc.cli.progress import shown_progress

if TYPE_CHECKING:
    from adaptc.compiler.driver import Compiled
    from adaptc.spec.schema import Spec


COLLECT_EVERY = 1_000_000
"""Objects that are made before Python looks for cycles among the newest ones."""


@click.command("compile")
@MODEL
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("bundle"), show_default=True)
@model_options
@CACHE
@click.option("--print-spec", is_flag=True, help="Print the model.yaml that this stands for, and stop.")
@click.option("--dry-run", is_flag=True, help="Print the stages of this compile, and stop.")
@click.option("--resume/--no-resume", default=True, show_default=True, help="Use stages that earlier runs finished.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    model: str,
    output: Path,
    settings: tuple[str, ...],
    cache_dir: Path | None,
    print_spec: bool,
    dry_run: bool,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compile MODEL into a bundle.

    MODEL is a hub id (org/name or org/name@revision), a model's folder or a GGUF file, or a model.yaml. Of a folder
    with a model.yaml in it the model.yaml is taken. Options stand for keys of a model.yaml; the one that a model alone
    stands for is printed.
    """
    import tempfile

    from adaptc.compiler.cache import Cache
    from adaptc.compiler.driver import compile_spec
    from adaptc.runtime.bundle.names import REPORT
    from adaptc.starting.plain import plain_yaml
    from adaptc.writing.calibration import calibration_of

    given = read_model(model, settings, **options)
    spec = given.spec
    if print_spec:
        click.echo(plain_yaml(spec), nl=False)
        return
    if given.plain and not as_json:
        click.echo(f"# {model} as a model.yaml; --print-spec prints this alone\n{plain_yaml(spec)}")
    if dry_run:
        _print_plan(spec, given.base, output)
        return
    warnings: list[str] = []
    try:
        with (
            tempfile.TemporaryDirectory() as scratch,
            shown_progress() as progress,
            _seldom_collected(),
        ):
            cache = open_cache(cache_dir) if resume else Cache(Path(scratch))
            text = calibration_of(spec, given.base, cache, progress)
            compiled = compile_spec(spec, given.base, output, cache, progress, warnings.append, text)
    finally:
        for line in warnings:
            click.echo(f"warning: {line}", err=True)
    if as_json:
        click.echo(compiled.bundle.read(REPORT).decode(), nl=False)
    else:
        _print_report(compiled)


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Have Python look for cycles less often, and not at all when it ends: a tenth of SmolLM2's compile went there.

    Libraries, graphs and translations are a million objects that stay, which each look goes through again.
    """
    before = gc.get_threshold()
    gc.set_threshold(COLLECT_EVERY, 50, 100)
    atexit.register(gc.freeze)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _print_plan(spec: Spec, base: Path, output: Path) -> None:
    from adaptc.compiler.pipeline import plan_of
    from adaptc.sources.default_weights import with_default_weights

    spec = with_default_weights(spec, base)
    plan = plan_of(spec, base)
    passes = {pass_.name for pass_ in plan.passes}
    for name, model in spec.models.items():
        adapters = "".join(f" + {each.source}" for each in model.adapters)
        click.echo(f"model   {name}: {model.source}{adapters}")
    for stage in plan.stages:
        click.echo(f"{'pass' if stage in passes else 'stage':7} {stage}")
    click.echo(f"target  {spec.target.backend}, {spec.target.weights} weights, {spec.target.max_tokens} tokens")
    click.echo(f"write   {output}")


def _print_report(compiled: Compiled) -> None:
    from adaptc.cli.output import print_facts, print_gates
    from adaptc.report.facts import facts, source_facts
    from adaptc.report.files import record_of

    path, manifest = compiled.bundle.path, compiled.bundle.manifest
    verbose = click.get_current_context().find_root().params.get("verbose", 0) > 0
    print_facts([*facts(manifest, details=verbose), *source_facts(record_of(compiled.bundle), details=verbose)])
    for name, verdict in manifest.gate_verdicts.items() if verbose else ():
        print_gates(name, verdict)
    click.echo(f"{'copied from the cache to' if compiled.cached else 'wrote'} {path}; {path / 'report.html'} has more")
