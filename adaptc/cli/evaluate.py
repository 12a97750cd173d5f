"""Commands that measure quality: eval, answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from adaptc.cli.measure import BASE, BUNDLE, CACHE, JSON, THREADS, _bar, _cache, _print, status

if TYPE_CHECKING:
    from adaptc.evaluate import Ids
    from adaptc.runtime import Bundle
    from adaptc.sweep import Subject


@click.command("eval")
@BUNDLE
@click.option("--text", type=click.Path(path_type=Path), required=True, help="A UTF-8 text to predict.")
@click.option("--sweep", is_flag=True, help="A table: every policy of skip_ffn, 5 to 50 % of blocks skipped.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="What a sweep's quality runs on.")
@click.option("--speed/--no-speed", default=True, show_default=True, help="With --sweep: time each budget too.")
@click.option("--tokens", type=click.IntRange(2), help="Use only so many tokens of it.")
@click.option("--window", type=click.IntRange(2), default=512, show_default=True, help="Tokens seen at once.")
@click.option("--budget", type=click.FloatRange(0, 1), help="0 cheapest, 1 dense; for bundles with gates or a router.")
@click.option("--route", help="The route to measure, of a stitched bundle; by default its router picks.")
@click.option("--step", is_flag=True, help="Go token by token, as when text is written; slow.")
@click.option(
    "--dense/--no-dense", default=True, show_default=True, help="Also measure the source model, run by torch."
)
@click.option("--dense-dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@THREADS
@BASE
@CACHE
@JSON
def eval_command(
    bundle: Path,
    text: Path,
    tokens: int | None,
    window: int,
    budget: float | None,
    route: str | None,
    step: bool,
    sweep: bool,
    device: str,
    speed: bool,
    dense: bool,
    dense_dtype: str,
    threads: int | None,
    base: Path,
    cache_dir: Path | None,
    as_json: bool,
) -> None:
    """Measure a bundle's perplexity on a text."""
    from adaptc import evaluate
    from adaptc.runtime import open_bundle

    if sweep:
        options = SweepOptions(window, device, speed, threads, base, as_json)
        with status() as stage:
            found = sweep_result(bundle, text, tokens, options, stage)
        _print_sweep(found, as_json)
        return
    opened = open_bundle(bundle)
    routes = evaluate.route_bytes(opened)
    if budget is not None and budget < 1 and not opened.manifest.gates and not routes:
        click.echo("this bundle has no gates: it runs dense whatever the budget", err=True)
    ids = evaluate.text_ids(opened, text, tokens)
    with _bar(len(ids), "bundle") as progress:
        own = evaluate.bundle_perplexity(
            opened, ids, window, step=step, budget=budget, route=route, threads=threads, progress=progress
        )
    reference = None
    if dense:
        from adaptc.reference import source_of

        source, sha256 = source_of(opened, base), next(iter(opened.manifest.models.values())).sha256
        with _bar(len(ids), "source model") as progress:
            reference = evaluate.dense_perplexity(
                *(source, sha256, ids, window, _cache(cache_dir)),
                dtype=dense_dtype,
                threads=threads,
                progress=progress,
            ).perplexity
    result = {
        "perplexity": own.perplexity,
        "dense_perplexity": reference,
        "ratio": None if reference is None else own.perplexity / reference,
        "tokens": own.tokens,
        "ffn_skipped": own.ffn_skipped,
        "bytes_not_read": own.bytes_not_read,
        "bytes_per_token": routes.get(route or "", opened.manifest.report.get("bytes_per_token")),
        "window": window,
        "step": step or (budget is not None and budget < 1 and bool(opened.manifest.gates)),
        "dense_dtype": dense_dtype if dense else None,
    }
    _print(result, as_json)


@click.command("answers")
@BUNDLE
@click.option("--prompts", type=click.Path(path_type=Path), help="JSONL with `prompt` or `turns`: does text collapse?")
@click.option(
    "--questions", type=click.Path(path_type=Path), help="YAML or JSONL: are answers right, after 4 examples?"
)
@click.option("--budget", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="0 cheapest, 1 dense.")
@click.option("--first", type=click.IntRange(1), help="Use only so many of the file.")
@click.option("--new-tokens", type=click.IntRange(1), default=512, show_default=True, help="Most of an answer.")
@THREADS
@JSON
def answers_command(
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
    from adaptc import answers
    from adaptc.runtime import load, open_bundle

    if (prompts is None) == (questions is None):
        raise click.UsageError("give either --prompts or --questions")
    opened = open_bundle(bundle)
    if not opened.manifest.gates:
        click.echo("this bundle has no gates: it runs dense whatever the budget", err=True)
    if questions is not None:
        asked = answers.read_questions(questions)[: first and first + answers.SHOTS]
        with _bar(len(asked) - answers.SHOTS, "questions") as told:
            _print({"budget_asked": budget} | answers.factoids(opened, asked, budget, threads, told), as_json)
    if prompts is not None:
        texts = answers.read_prompts(prompts)[:first]
        with load(bundle, threads=threads, batch=1, verify=False) as session, _bar(len(texts), "prompts") as told:
            chat = answers.has_chat(opened)
            found = answers.collapse(session, texts, budget, new_tokens, chat=chat, told=told)
        flat = {f"{kind}_{name}": value for kind, values in found.items() for name, value in values.items()}
        _print({"budget_asked": budget, "prompts": len(texts)} | flat, as_json)


class SweepOptions(NamedTuple):
    """What a sweep takes from the command line."""

    window: int
    device: str
    speed: bool
    threads: int | None
    base: Path
    as_json: bool


def sweep_result(
    subject: Path, text: Path, tokens: int | None, options: SweepOptions, stage: Callable[[str], None]
) -> dict[str, Any]:
    """Measure every policy at every share, of a bundle or of a spec."""
    from adaptc import sweep
    from adaptc.sweep_speed import Timing, speeds
    from adaptc.train_spec import device_of

    settings = sweep.Settings(options.window, device=device_of(options.device))
    given, ids, bundle = _subject(subject, text, tokens, options.base, stage)
    result = {"of": subject.name, "text": text.name} | sweep.quality(given, ids, settings, stage)
    if options.speed and bundle is not None and bundle.manifest.gates:
        result["speed"] = speeds(bundle, ids, (0.0, *settings.shares), Timing(threads=options.threads), stage)
    return result


def _subject(
    path: Path, text: Path, tokens: int | None, base: Path, stage: Callable[[str], None]
) -> tuple[Subject, Ids, Bundle | None]:
    """What is swept, and the text's ids."""
    from adaptc import evaluate, sweep
    from adaptc.calibration_text import CalibrationText
    from adaptc.runtime import open_bundle
    from adaptc.spec import read_spec

    if path.suffix not in (".yaml", ".yml"):
        bundle = open_bundle(path)
        return sweep.subject(bundle, base, stage), evaluate.text_ids(bundle, text, tokens), bundle
    given, source = sweep.spec_subject(read_spec(path), path.parent, stage)
    read = CalibrationText(text.name, evaluate.read_text(text), tokens or 1 << 40)
    return given, read.ids(source), None


def _print_sweep(result: Mapping[str, Any], as_json: bool) -> None:
    for name, why in result["missing"].items():
        click.echo(f"{name}: {why}", err=True)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    from adaptc.sweep import table

    heads, rows = table(result)
    caption = f"perplexity / dense ({result['dense_perplexity']:.2f}) on {result['tokens']} tokens of {result['text']}"
    printed = Table(caption=f"{caption}; layers: keys and values of dropped layers are missing from the cache")
    for head in heads:
        printed.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        printed.add_row(*row)
    console = Console()
    # Into a file or a pipe rich assumes 80 columns, which cuts names short.
    (console if console.is_terminal else Console(width=140)).print(printed)
