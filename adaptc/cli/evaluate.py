"""Commands that measure quality: eval, answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from adaptc.cli.measure import BASE, BUNDLE, CACHE, JSON, ROUTES, THREADS, _bar, _cache, _print, status

if TYPE_CHECKING:
    from adaptc.compiler.cache import Cache
    from adaptc.evaluation.perplexity import Ids
    from adaptc.evaluation.sweep import Subject
    from adaptc.runtime import Bundle


@click.command("eval")
@BUNDLE
@click.option("--text", type=click.Path(path_type=Path), required=True, help="A UTF-8 text to predict.")
@click.option("--sweep", is_flag=True, help="A table: every policy of skip_ffn, 5 to 50 % of blocks skipped.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="What a sweep's quality runs on.")
@click.option("--speed/--no-speed", default=True, show_default=True, help="With --sweep: time each budget too.")
@click.option("--tokens", type=click.IntRange(2), help="Use only so many tokens of it.")
@click.option("--window", type=click.IntRange(2), default=512, show_default=True, help="Tokens seen at once.")
@click.option("--budget", type=click.FloatRange(0, 1), help="0 cheapest, 1 dense; for bundles with gates or a router.")
@ROUTES
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
    routes: tuple[str, ...],
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
    """Measure a bundle's perplexity on a text.

    Of a stitched bundle that of its routes, of the router's choice for each window, and of the models it is made of.
    """
    from adaptc.evaluation import perplexity as evaluate
    from adaptc.runtime import open_bundle

    if sweep:
        options = SweepOptions(window, device, speed, threads, base, as_json)
        with status() as stage:
            found = sweep_result(bundle, text, tokens, options, stage)
        _print_sweep(found, as_json)
        return
    opened = open_bundle(bundle)
    wanted = evaluate.routes_of(opened, routes)
    if budget is not None and budget < 1 and not opened.manifest.gates and not wanted:
        click.echo("this bundle has no gates: it runs dense whatever the budget", err=True)
    ids = evaluate.text_ids(opened, text, tokens)

    how = {"step": step, "budget": budget, "threads": threads}
    references = _models(opened, ids, window, dense_dtype, threads, base, _cache(cache_dir)) if dense else {}
    about = {
        "window": window,
        "step": step or (budget is not None and budget < 1 and bool(opened.manifest.gates)),
        "dense_dtype": dense_dtype if dense else None,
    }
    if wanted:
        ways = (*wanted, *((None,) if evaluate.has_router(opened) and not routes else ()))
        ran = {way or "router": _perplexity(opened, ids, window, way, how) for way in ways}
        _print({"routes": ran, "models": references} | about, as_json)
        return
    own = _perplexity(opened, ids, window, None, how)
    reference = next(iter(references.values()), None)
    ratio = None if reference is None else own["perplexity"] / reference
    _print({"perplexity": own.pop("perplexity"), "dense_perplexity": reference, "ratio": ratio} | own | about, as_json)


def _perplexity(bundle: Bundle, ids: Ids, window: int, route: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured of a bundle, of one of its routes, or of the routes that its router picks."""
    from adaptc.evaluation import perplexity as evaluate

    with _bar(len(ids), route or "bundle") as progress:
        found = evaluate.bundle_perplexity(bundle, ids, window, route=route, progress=progress, **options)
    costs = evaluate.route_bytes(bundle)
    taken = found.routes if route is None else {route: 1.0}
    read = sum(costs[name] * share for name, share in taken.items()) or bundle.manifest.report.get("bytes_per_token")
    result = {
        "perplexity": found.perplexity,
        "tokens": found.tokens,
        "ffn_skipped": found.ffn_skipped,
        "bytes_not_read": found.bytes_not_read,
        "bytes_per_token": read,
    }
    return result | ({"shares": dict(found.routes)} if found.routes else {})


def _models(
    bundle: Bundle, ids: Ids, window: int, dtype: str, threads: int | None, base: Path, cache: Cache
) -> dict[str, float]:
    """Perplexities of the models a bundle was made of, by name."""
    from adaptc.evaluation.perplexity import dense_perplexity
    from adaptc.evaluation.reference import sources_of

    found = {}
    for name, source in sources_of(bundle, base).items():
        sha256 = bundle.manifest.models[name].sha256
        with _bar(len(ids), f"source model {name}") as progress:
            found[name] = dense_perplexity(
                source, sha256, ids, window, cache, dtype=dtype, threads=threads, progress=progress
            ).perplexity
    return found


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
    from adaptc.evaluation import answers
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
    from adaptc.evaluation import sweep
    from adaptc.evaluation.sweep_speed import Timing, speeds
    from adaptc.training.gates.spec import device_of

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
    from adaptc.evaluation import perplexity as evaluate
    from adaptc.evaluation import sweep
    from adaptc.runtime import open_bundle
    from adaptc.sources.calibration_text import CalibrationText
    from adaptc.spec.schema import read_spec

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

    from adaptc.evaluation.sweep import table

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
