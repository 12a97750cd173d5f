"""The command `adaptc show`."""

from __future__ import annotations

from pathlib import Path

import click

from adaptc.cli.options import CACHE, SETTINGS, open_cache
from adaptc.cli.progress import shown_progress


@click.command("show")
@click.argument("subject", metavar="SPEC|BUNDLE", type=click.Path(path_type=Path))
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
        from adaptc.report.graphs import bundle_page, bundle_text
        from adaptc.runtime import open_bundle

        if html_file is None:
            click.echo(bundle_text(open_bundle(subject)), nl=False)
        else:
            _write(html_file, bundle_page(open_bundle(subject)))
        return
    from adaptc.compiler import show
    from adaptc.spec.reading import read_spec
    from adaptc.writing.calibration import calibration_of

    spec = read_spec(subject, settings)
    show.passes_shown(spec, subject.parent, after)  # a text that a model writes itself takes minutes
    with shown_progress() as progress:
        cache = open_cache(cache_dir)
        text = calibration_of(spec, subject.parent, cache, progress)
        taken = show.snapshots(spec, subject.parent, after, progress, cache, text)
    if html_file is not None:
        _write(html_file, show.page(spec.name or subject.stem, taken))
    else:
        click.echo(show.difference(taken) if diff else taken[-1].text, nl=diff)


def _write(file: Path, page: str) -> None:
    file.write_text(page, encoding="utf-8")
    click.echo(f"wrote {file}", err=True)
