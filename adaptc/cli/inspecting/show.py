"""The command `adaptc show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adaptc.cli.options import CACHE, SETTINGS, open_cache
from adaptc.cli.progress import shown_progress

if TYPE_CHECKING:
    from adaptc.runtime.bundle.manifest import Manifest


@click.command("show")
@click.argument("subject", metavar="SPEC|BUNDLE", type=click.Path(exists=True, path_type=Path))
@click.option("--after", metavar="PASS", help="Stop after this pass; `capture` stops before the first.")
@click.option("--diff", is_flag=True, help="Print what the last pass changed.")
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write an HTML page instead, with a layer drawn: after each pass of a SPEC, or of each graph of a BUNDLE.",
)
@SETTINGS
@CACHE
def command(
    subject: Path,
    after: str | None,
    diff: bool,
    html_file: Path | None,
    settings: tuple[str, ...],
    cache_dir: Path | None,
) -> None:
    """Print a program, one operation a line."""
    if subject.is_dir():
        if after or diff or settings:
            raise click.UsageError("a bundle holds the finished program; --after, --diff and --set take a SPEC")
        if html_file is None:
            click.echo(_bundle_text(subject), nl=False)
        else:
            _write_bundle_page(html_file, subject)
        return
    from adaptc.compiler import show
    from adaptc.spec.reading import read_spec

    spec = read_spec(subject, settings)
    with shown_progress() as progress:
        taken = show.snapshots(spec, subject.parent, after, progress, open_cache(cache_dir))
    if html_file is not None:
        _write(html_file, show.page(spec.name or subject.stem, taken))
    else:
        click.echo(show.difference(taken) if diff else taken[-1].text, nl=diff)


def _write(file: Path, page: str) -> None:
    file.write_text(page, encoding="utf-8")
    click.echo(f"wrote {file}", err=True)


def _write_bundle_page(file: Path, bundle: Path) -> None:
    from adaptc.compiler import show

    _write(file, show.bundle_page(bundle))


def _bundle_text(bundle: Path) -> str:
    """A bundle's operations, or what its manifest says of its graphs where ONNX files cannot be read."""
    try:
        from adaptc.compiler import show
    except ModuleNotFoundError as error:
        from adaptc.runtime.bundle.folder import open_bundle

        click.echo(f"without operations: {error.name} is not installed; pip install 'adaptc[compile]'", err=True)
        return _outline(open_bundle(bundle).manifest)
    return show.bundle_text(bundle)


def _outline(manifest: Manifest) -> str:
    """The plan, and each graph's inputs, size and outputs."""
    lines = [f"# plan: {'; '.join(map(str, manifest.plan))}"]
    for name, graph in manifest.graphs.items():
        lines.append(f"# graph {name}")
        lines += [f"%{each.name}: {each.dtype}[{', '.join(map(str, each.shape))}] = input" for each in graph.inputs]
        lines.append(f"# {graph.nodes} operations")
        lines.append("return " + ", ".join(f"%{each.name}" for each in graph.outputs))
    return "\n".join(lines) + "\n"
