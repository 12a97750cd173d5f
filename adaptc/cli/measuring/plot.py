"""The command `adaptc plot`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptc.cli.options import BASE, BUNDLE, THREADS
from adaptc.cli.progress import shown_progress

if TYPE_CHECKING:
    from adaptc.runtime import Bundle


PROMPT = "Explain in a few sentences why the sky is blue and why sunsets are red."


_RIGHT = "what `adaptc eval --sweep --json` prints is right"


@click.command("plot")
@BUNDLE
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), default=Path("plots"))
@click.option(
    "--sweep",
    type=click.Path(path_type=Path),
    help="The JSON of `adaptc eval --sweep`; without it a sweep is made now.",
)
@click.option("--text", type=click.Path(path_type=Path), help="The text for a sweep that is made now.")
@click.option(
    "--tokens", type=click.IntRange(2), default=4096, show_default=True, help="Use this many tokens of the text."
)
@click.option("-p", "--prompt", default=PROMPT, help="The prompt of the skip map; by default a question about the sky.")
@click.option("-n", "--max-new-tokens", type=click.IntRange(1), default=96, show_default=True)
@click.option(
    "--budget",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Budget of the skip map: 0 is cheapest, 1 is dense.",
)
@click.option("--format", "ending", type=click.Choice(["png", "svg"]), default="png", show_default=True)
@THREADS
@BASE
def command(
    bundle: Path,
    output: Path,
    sweep: Path | None,
    text: Path | None,
    tokens: int,
    prompt: str,
    max_new_tokens: int,
    budget: float,
    ending: str,
    threads: int | None,
    base: Path,
) -> None:
    """Draw quality against speed, and which blocks a prompt skips."""
    from adaptc.errors import RequestError
    from adaptc.plots import budgets as plot
    from adaptc.runtime import open_bundle

    opened = open_bundle(bundle)
    if not opened.manifest.gates:
        raise RequestError(f"{bundle}: no gates; there is nothing to draw")
    title = next(iter(opened.manifest.models.values())).source.rpartition("/")[2]
    result = None
    if sweep is not None:
        result = _read(sweep)
    elif text is not None:
        result = _sweep(opened, text, tokens, threads, base)
    if result is not None:
        try:
            picture = plot.curves(result, title)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if sweep is None:
                raise  # of our own making
            raise RequestError(f"{sweep}: no sweep ({error!r}); {_RIGHT}") from error
        plot.save(picture, output / f"quality.{ending}")
        click.echo(output / f"quality.{ending}")
    else:
        click.echo("no --sweep and no --text: only the skip map is drawn", err=True)
    plot.save(_map(opened, prompt, max_new_tokens, budget, threads), output / f"skips.{ending}")
    click.echo(output / f"skips.{ending}")


def _sweep(bundle: Bundle, text: Path, tokens: int, threads: int | None, base: Path) -> dict[str, Any]:
    """A sweep that is made now."""
    from adaptc.evaluation.sweep.sweep import Options, SweepSettings, sweep

    with shown_progress() as progress:
        return sweep(bundle.path, text, tokens, Options(SweepSettings(), True, threads, base), progress)


def _map(bundle: Bundle, prompt: str, new_tokens: int, budget: float, threads: int | None) -> Any:
    """The skip map of one answer."""
    from adaptc.evaluation.answers import has_chat
    from adaptc.plots import budgets as plot
    from adaptc.runtime import load
    from adaptc.runtime.loading import tokenizer_of

    with load(bundle.path, threads=threads, batch=1, verify=False, budget=budget) as session:
        if has_chat(bundle):
            result = session.chat([{"role": "user", "content": prompt}], max_new_tokens=new_tokens, budget=budget)
        else:
            result = session.generate(prompt, max_new_tokens=new_tokens, budget=budget)
        gates = session.gates
    assert gates is not None
    assert result.trace.skips is not None
    tokenizer = tokenizer_of(bundle)
    assert tokenizer is not None
    # A token that went through the graph: all that were chosen but the last, less those of the warm-up.
    fed = list(result.ids[:-1])[len(result.ids) - 1 - len(result.trace.skips.ran) :]
    written = [tokenizer.decode([token]) for token in fed]
    short = prompt if len(prompt) <= 48 else f"{prompt[:47]}…"
    return plot.skip_map(result.trace.skips, gates, written, f"“{short}”", f"Budget {budget:g}: ")


def _read(path: Path) -> dict[str, Any]:
    """A sweep from its JSON."""
    from adaptc.errors import RequestError
    from adaptc.evaluation.text import read_text

    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise RequestError(f"{path}: not JSON: {error}; {_RIGHT}") from error
    if not isinstance(found, dict) or "policies" not in found:
        raise RequestError(f"{path}: no sweep; {_RIGHT}")
    return found
