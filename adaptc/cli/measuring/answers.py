"""The command `adaptc answers`."""

from __future__ import annotations

from pathlib import Path

import click

from adaptc.cli.options import BUNDLE, JSON, THREADS
from adaptc.cli.output import print_result
from adaptc.cli.progress import shown_progress


@click.command("answers")
@BUNDLE
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="A JSONL file with `prompt` or `turns`: do answers repeat themselves?",
)
@click.option(
    "--questions",
    type=click.Path(path_type=Path),
    help="A YAML or JSONL file with answers: are they right, after 4 examples?",
)
@click.option(
    "--budget", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="0 is cheapest, 1 is dense."
)
@click.option("--first", type=click.IntRange(1), help="Use only this many entries of the file.")
@click.option(
    "--new-tokens",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="The largest number of tokens of an answer.",
)
@THREADS
@JSON
def command(
    bundle: Path,
    prompts: Path | None,
    questions: Path | None,
    budget: float,
    first: int | None,
    new_tokens: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare a bundle's answers under a budget with dense ones."""
    from adaptc.errors import RequestError
    from adaptc.evaluation import answers
    from adaptc.evaluation.questions import SHOTS, read_questions
    from adaptc.runtime import load, open_bundle
    from adaptc.runtime.model.plan import check_budget_fits

    if (prompts is None) == (questions is None):
        raise click.UsageError("give either --prompts or --questions")
    opened = open_bundle(bundle)
    try:
        check_budget_fits(opened, budget)
    except RequestError as error:
        raise RequestError(f"{bundle}: neither gates nor a router; under every budget its answers are dense") from error
    if questions is not None:
        asked = read_questions(questions)[: first and first + SHOTS]
        with shown_progress() as progress:
            progress.stage("questions")
            found = answers.factoids(opened, asked, budget, threads, progress)
        print_result({"budget_asked": budget} | found, as_json)
    if prompts is not None:
        texts = answers.read_prompts(prompts)[:first]
        with load(bundle, threads=threads, batch=1, verify=False) as session, shown_progress() as progress:
            progress.stage("prompts")
            chat = answers.has_chat(opened)
            figures = answers.collapse(session, texts, budget, new_tokens, chat=chat, progress=progress)
        flat = {f"{kind}_{name}": value for kind, values in figures.items() for name, value in values.items()}
        print_result({"budget_asked": budget, "prompts": len(texts)} | flat, as_json)
