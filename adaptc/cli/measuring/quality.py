"""The command `adaptc quality`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from adaptc.cli.options import JSON, ROUTES, THREADS
from adaptc.cli.progress import shown_progress


@click.command("quality")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--text", type=click.Path(path_type=Path), help="A UTF-8 text to predict, for perplexity.")
@click.option("--tokens", type=click.IntRange(2), help="Use only this many tokens of the text.")
@click.option("--window", type=click.IntRange(2), default=512, show_default=True, help="Number of tokens seen at once.")
@click.option(
    "--letters",
    type=click.Path(path_type=Path),
    help="A JSONL file, or lm-eval's MMLU examples: is the right letter chosen?",
)
@click.option(
    "--questions",
    type=click.Path(path_type=Path),
    help="A YAML or JSONL file with answers: are they right, after 4 examples?",
)
@click.option(
    "--instructions/--no-instructions",
    default=True,
    show_default=True,
    help="Measure whether instructions are followed.",
)
@click.option("--first", type=click.IntRange(1), help="Use only this many entries of each file.")
@ROUTES
@THREADS
@JSON
def command(
    bundles: tuple[Path, ...],
    text: Path | None,
    tokens: int | None,
    window: int,
    letters: Path | None,
    questions: Path | None,
    instructions: bool,
    first: int | None,
    routes: tuple[str, ...],
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure what bundles can do, route by route: a table.

    Perplexity on a text, questions with lettered choices (MMLU), questions with known answers, and instructions that a
    program can check. Prints Markdown.
    """
    from adaptc.evaluation.instructions import INSTRUCTIONS
    from adaptc.evaluation.letters import read_lettered
    from adaptc.evaluation.quality import Tasks, quality, table
    from adaptc.evaluation.questions import SHOTS, read_questions
    from adaptc.evaluation.text import text_ids
    from adaptc.runtime import open_bundle
    from adaptc.runtime.model.plan import refuse_encoder

    asked = read_questions(questions)[: first and first + SHOTS] if questions is not None else []
    lettered = read_lettered(letters)[:first] if letters is not None else []
    kept = INSTRUCTIONS[:first] if instructions else ()
    results: dict[str, dict[str, Any]] = {}
    with shown_progress() as progress:
        for bundle in (open_bundle(path) for path in bundles):
            refuse_encoder(bundle)
            ids = text_ids(bundle, text, tokens) if text is not None else None
            name = bundle.path.name
            rows = quality(bundle, Tasks(ids, window, lettered, asked, kept), routes, threads, progress)
            for route, row in rows.items():
                results[" ".join(filter(None, (name if len(bundles) > 1 or not route else "", route)))] = row
    click.echo(json.dumps(results, indent=2) if as_json else table(results))
