"""The command `adaptc quality`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adaptc.cli.options import JSON, ROUTES, THREADS, refuse_given
from adaptc.cli.progress import shown_progress

if TYPE_CHECKING:
    from adaptc.evaluation.harness.run import TaskOptions
    from adaptc.evaluation.quality import QualityRow, Way
    from adaptc.runtime.bundle.folder import Bundle
    from adaptc.runtime.progress import Progress


def _files(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> dict[str, Path]:
    """NAME=FILE pairs by name."""
    pairs = [value.partition("=") for value in values]
    if any(not name or not file for name, _, file in pairs):
        raise click.BadParameter("NAME=FILE is right, with the name of a task")
    return {name: Path(file) for name, _, file in pairs}


@click.command("quality")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--tasks",
    help="Tasks with commas: letters, capitals, word_problems, checked_instructions, humaneval_sandboxed, gsm8k_file, "
    "or any of lm-evaluation-harness's, which download.",
)
@click.option("--text", type=click.Path(path_type=Path), help="A UTF-8 text to predict, for perplexity.")
@click.option("--tokens", type=click.IntRange(2), help="Use only this many tokens of the text.")
@click.option("--window", type=click.IntRange(2), default=512, show_default=True, help="Number of tokens seen at once.")
@click.option("--chats", type=click.Path(path_type=Path), help="Held-out chats: how likely are their answers?")
@click.option(
    "--reference", type=click.Path(path_type=Path), help="A bundle that answers of --chats are compared with."
)
@click.option(
    "--router",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="With --chats alone: what is the router worth on their answers? Writes router.json and router.png there.",
)
@click.option(
    "--limit", type=click.IntRange(1), help="Ask only so many documents of each task, or chats, from the first."
)
@click.option(
    "--file", "files", multiple=True, metavar="NAME=FILE", callback=_files, help="A file for a task's documents."
)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    type=click.FloatRange(0, 1),
    help="0 is cheapest, 1 is dense. May be repeated.",
)
@click.option(
    "--batch", type=click.IntRange(1), default=8, show_default=True, help="Answers that are written together."
)
@click.option("--chat/--no-chat", default=None, help="Use the chat template; by default for tasks of instructions.")
@click.option("--allow-code-execution", is_flag=True, help="Run what the model writes, for tasks of code.")
@ROUTES
@THREADS
@JSON
def command(
    bundles: tuple[Path, ...],
    tasks: str | None,
    text: Path | None,
    tokens: int | None,
    window: int,
    chats: Path | None,
    reference: Path | None,
    router: Path | None,
    limit: int | None,
    files: dict[str, Path],
    budgets: tuple[float, ...],
    batch: int,
    chat: bool | None,
    allow_code_execution: bool,
    routes: tuple[str, ...],
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure what bundles can do, route by route: a table.

    Tasks of lm-evaluation-harness, perplexity on a text, and the likelihood of held-out chats, by route and budget,
    each with its interval of 95 %. Prints Markdown. With --router routes, the router, a coin and an oracle are drawn by
    what they lose on answers and by what they cost.
    """
    if router is not None:
        for name, given in (("route", routes), ("budget", budgets)):
            if given:
                raise click.UsageError(f"--{name}: not with --router, which measures all routes on chats")
        _measure_router(bundles, chats, router, limit, threads, as_json)
        return
    from adaptc.evaluation.quality import QualityRow, record, table, ways_of
    from adaptc.runtime import open_bundle
    from adaptc.runtime.model.plan import refuse_encoder

    opened = [open_bundle(path) for path in bundles]
    for bundle in opened:
        refuse_encoder(bundle)
    if tasks is None and text is None and chats is None:
        raise click.UsageError("nothing to measure; give --tasks, --text or --chats")
    asked = None if tasks is None else _asked(tasks, limit, files, chat, allow_code_execution)
    rows: dict[str, QualityRow] = {}
    with shown_progress() as progress:
        for bundle in opened:
            ways = ways_of(bundle, routes, budgets)
            mine = [QualityRow(way.bytes_per_token) for way in ways]
            if text is not None:
                _perplexities(bundle, ways, mine, (text, tokens, window), threads, progress)
            if chats is not None:
                _chats(bundle, ways, mine, (chats, reference, limit), threads, progress)
            if asked is not None:
                _tasks(bundle, ways, mine, asked, batch, threads, progress)
            for way, row in zip(ways, mine, strict=True):
                own = bundle.path.name if len(bundles) > 1 or not way.name else ""
                rows[" ".join(filter(None, (own, way.name)))] = row
    click.echo(json.dumps(record(rows), indent=2) if as_json else table(rows))


def _measure_router(
    bundles: Sequence[Path], chats: Path | None, output: Path, limit: int | None, threads: int | None, as_json: bool
) -> None:
    """Measure the router of one bundle, write router.json and router.png, and print what it comes to."""
    from adaptc.evaluation.routing import measure_routing
    from adaptc.plots.routing import draw
    from adaptc.runtime import open_bundle
    from adaptc.runtime.model.plan import refuse_encoder

    if len(bundles) != 1 or chats is None:
        raise click.UsageError("--router: one bundle, and --chats with a file of them, are right")
    why = "not with --router, which measures all routes on chats"
    refuse_given(("tasks", "text", "tokens", "reference"), why)
    bundle = open_bundle(bundles[0])
    refuse_encoder(bundle)
    with shown_progress() as progress:
        routing = measure_routing(bundle, chats, limit, threads, progress)
    output.mkdir(parents=True, exist_ok=True)
    record = {"bundle": bundle.path.name, "chats": chats.name, **routing.record()}
    (output / "router.json").write_text(json.dumps(record, indent=2))
    draw(routing, bundle.path.name, output / "router.png")
    if as_json:
        click.echo(json.dumps(record, indent=2))
    else:
        click.echo(
            f"| {routing.prompts} answers | bytes a token | nats a token lost | likelihood kept |\n|---|---|---|---|"
        )
        for name, point in {**routing.routes, "**router**": routing.calibrated}.items():
            click.echo(f"| {name} | {point.cost:.1%} | {point.loss:.3f} ± {point.error:.3f} | {point.kept:.1%} |")
        click.echo(f"\nThe router loses {routing.beats_coin_by:.3f} nats a token less than a coin at its cost.")
    click.echo(f"wrote {output / 'router.json'} and {output / 'router.png'}", err=True)


def _asked(tasks: str, limit: int | None, files: dict[str, Path], chat: bool | None, run_code: bool) -> TaskOptions:
    from adaptc.evaluation.harness.run import TaskOptions

    return TaskOptions(tuple(filter(None, tasks.split(","))), limit, files, chat, run_code)


def _perplexities(
    bundle: Bundle,
    ways: Sequence[Way],
    rows: Sequence[QualityRow],
    asked: tuple[Path, int | None, int],
    threads: int | None,
    progress: Progress,
) -> None:
    from adaptc.evaluation.perplexity import bundle_perplexity
    from adaptc.evaluation.text import text_ids

    text, tokens, window = asked
    ids = text_ids(bundle, text, tokens)
    for way, row in zip(ways, rows, strict=True):
        progress.stage(f"{way.name} perplexity".strip())
        options = {"budget": way.options.budget, "route": way.options.route}
        measured = bundle_perplexity(bundle, ids, window, **options, threads=threads, progress=progress)  # type: ignore[arg-type]
        row.other |= {"perplexity": measured.perplexity, "tokens": measured.tokens}


def _chats(
    bundle: Bundle,
    ways: Sequence[Way],
    rows: Sequence[QualityRow],
    asked: tuple[Path, Path | None, int | None],
    threads: int | None,
    progress: Progress,
) -> None:
    from adaptc.evaluation.chats import answer_losses
    from adaptc.runtime import open_bundle
    from adaptc.sources.chats import read_chats

    path, reference, limit = asked
    progress.stage("chats")
    found = answer_losses(
        bundle,
        read_chats(path).chats[:limit],
        [way.options for way in ways],
        None if reference is None else open_bundle(reference),
        threads,
        progress,
    )
    for row, measured in zip(rows, found, strict=True):
        row.figures["nll"] = measured.nll
        row.other |= {"answer_tokens": measured.tokens}
        if measured.kl is not None:
            row.figures["kl"] = measured.kl
        if measured.ffn_skipped:
            row.other["ffn_skipped_read"] = measured.ffn_skipped


def _tasks(
    bundle: Bundle,
    ways: Sequence[Way],
    rows: Sequence[QualityRow],
    asked: TaskOptions,
    batch: int,
    threads: int | None,
    progress: Progress,
) -> None:
    from adaptc.evaluation.harness.model import BundleLM
    from adaptc.evaluation.harness.run import measure

    model = BundleLM(bundle, batch=batch, threads=threads, progress=progress)
    for way, row in zip(ways, rows, strict=True):
        mine = model.by(way.options.route, way.options.budget)
        row.figures |= measure(mine, asked, progress)
        if mine.written.tokens:
            row.other |= {"written_tokens": mine.written.tokens, "ffn_skipped": mine.written.ffn_skipped}
    model.close()
