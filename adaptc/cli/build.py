"""Commands that build: compile, show, cache."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from adaptc.compiler.cache import Cache
    from adaptc.spec.schema import Spec

SETTING = click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change one key of the spec.")
CACHE = click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="ADAPTC_CACHE_DIR",
    help="Where finished stages are kept; by default the user's cache folder.",
)


@click.command("compile")
@click.argument("spec_file", metavar="SPEC", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("bundle"), show_default=True)
@SETTING
@CACHE
@click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
@click.option("--resume/--no-resume", default=True, show_default=True, help="Use stages that earlier runs finished.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def compile_command(
    spec_file: Path,
    output: Path,
    settings: tuple[str, ...],
    cache_dir: Path | None,
    dry_run: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Compile SPEC into a bundle."""
    import tempfile

    from adaptc.compiler.cache import Cache
    from adaptc.compiler.driver import compile_spec
    from adaptc.compiler.report import report_json
    from adaptc.spec.schema import read_spec

    spec = read_spec(spec_file, settings)
    if dry_run:
        _print_plan(spec, output)
        return
    with tempfile.TemporaryDirectory() as scratch, _stages(_stage_count(spec)) as stage:
        cache = _cache(cache_dir) if resume else Cache(Path(scratch))
        made = compile_spec(spec, spec_file.parent, output, cache, stage)
    manifest = made.bundle.manifest
    if as_json:
        click.echo(report_json(manifest), nl=False)
    else:
        _print_report(made.bundle.path, manifest, made.cached)


@click.command("show")
@click.argument("subject", metavar="SPEC|BUNDLE", type=click.Path(exists=True, path_type=Path))
@click.option("--after", metavar="PASS", help="Stop after this pass; `capture` is before the first.")
@click.option("--diff", is_flag=True, help="Show what the last pass shown changed.")
@click.option("--html", "html_file", type=click.Path(dir_okay=False, path_type=Path), help="Write a page instead.")
@SETTING
def show_command(
    subject: Path, after: str | None, diff: bool, html_file: Path | None, settings: tuple[str, ...]
) -> None:
    """Print a program, one operation a line."""
    from adaptc.compiler import show
    from adaptc.spec.schema import read_spec

    if subject.is_dir():
        if after or diff or html_file or settings:
            raise click.UsageError("a bundle holds the finished program; --after, --diff, --html and --set take a SPEC")
        click.echo(show.bundle_text(subject), nl=False)
        return
    spec = read_spec(subject, settings)
    with _stages(None) as stage:
        taken = show.snapshots(spec, subject.parent, after, stage)
    if html_file is not None:
        html_file.write_text(show.page(spec.name or subject.stem, taken), encoding="utf-8")
        click.echo(f"wrote {html_file}", err=True)
    else:
        click.echo(show.difference(taken) if diff else taken[-1].text, nl=diff)


@click.group("cache")
def cache_command() -> None:
    """List or clear what compiling keeps."""


@cache_command.command("ls")
@CACHE
@click.option("--json", "as_json", is_flag=True)
def cache_ls(cache_dir: Path | None, as_json: bool) -> None:
    """List entries, the longest unused first."""
    import json

    cache = _cache(cache_dir)
    entries = list(cache.entries())
    if as_json:
        rows = [{"kind": e.kind, "key": e.key, "bytes": e.bytes, "used": e.used, "path": str(e.path)} for e in entries]
        click.echo(json.dumps(rows, indent=2))
        return
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        click.echo(f"{entry.kind:8}  {entry.key[:16]}  {entry.bytes / 1e6:9.1f} MB  used {used}")
    click.echo(f"{sum(e.bytes for e in entries) / 1e6:.1f} MB in {len(entries)} entries in {cache.root}", err=True)


@cache_command.command("clear")
@CACHE
@click.option("--kind", help="Only entries of this kind.")
def cache_clear(cache_dir: Path | None, kind: str | None) -> None:
    """Delete entries; the next compile makes them again."""
    cache = _cache(cache_dir)
    click.echo(f"freed {cache.clear(kind) / 1e6:.1f} MB in {cache.root}", err=True)


def _cache(folder: Path | None) -> Cache:
    from adaptc.compiler.cache import Cache

    return Cache(folder) if folder is not None else Cache.default()


def _stage_count(spec: Spec) -> int:
    """find, read and capture each model, the spec's passes, lower, attach, six for the target, weights, bundle."""
    return 2 + 2 * len(spec.models) + len(spec.passes) + 1 + 1 + 5 + 2


@contextmanager
def _stages(total: int | None) -> Iterator[Callable[[str], None]]:
    """A progress bar on stderr that keeps a line, with its time, for each finished stage."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        current: tuple[str, float] | None = None

        def finish() -> None:
            if current is not None:
                console.print(f"  [dim]{time.perf_counter() - current[1]:6.1f} s[/]  {current[0]}", highlight=False)

        def stage(name: str) -> None:
            nonlocal current
            finish()
            current = (name, time.perf_counter())
            progress.update(task, description=name, advance=1)

        yield stage
        finish()


def _print_plan(spec: Spec, output: Path) -> None:
    from adaptc.compiler.driver import target_passes
    from adaptc.spec.schema import build_passes

    for name, model in spec.models.items():
        click.echo(f"model   {name}: {model.source}")
    click.echo(f"capture {', '.join(spec.models)}")
    own = [p.name for p in build_passes(spec)]
    gated = ["branch"] if "skip_ffn" in own and spec.target.backend == "onnxruntime" else []
    names = [*own, "lower", *(p.name for p in target_passes(spec)), *gated]
    for name in names:
        click.echo(f"pass    {name}")
    click.echo(f"target  {spec.target.backend}, {spec.target.weights} weights, {spec.target.max_tokens} tokens")
    click.echo(f"write   {output}")


def _print_report(path: Path, manifest: object, cached: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from adaptc.compiler.report import facts
    from adaptc.runtime.bundle.manifest import Manifest

    assert isinstance(manifest, Manifest)
    table = Table.grid(padding=(0, 2))
    for name, value in facts(manifest):
        table.add_row(f"[dim]{name}[/]", value)
    console = Console()
    console.print(table)
    console.print(
        f"{'copied from the cache to' if cached else 'wrote'} [bold]{path}[/]; report in {path / 'report.html'}"
    )
