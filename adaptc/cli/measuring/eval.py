"""The command `adaptc eval`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptc.cli.options import BASE, BUNDLE, CACHE, JSON, ROUTES, THREADS, open_cache
from adaptc.cli.output import print_result, print_table
from adaptc.cli.progress import shown_progress

if TYPE_CHECKING:
    from adaptc.compiler.cache import Cache
    from adaptc.evaluation.text import Ids
    from adaptc.runtime import Bundle


@click.command("eval")
@BUNDLE
@click.option("--text", type=click.Path(path_type=Path), required=True, help="A UTF-8 text to predict.")
@click.option("--sweep", is_flag=True, help="Print a table: every policy of skip_ffn, for 5 to 50 % of blocks skipped.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Device that measures the quality of a sweep."
)
@click.option(
    "--speed/--no-speed", default=True, show_default=True, help="With --sweep: measure the speed under each budget too."
)
@click.option("--tokens", type=click.IntRange(2), help="Use only this many tokens of the text.")
@click.option("--window", type=click.IntRange(2), default=512, show_default=True, help="Number of tokens seen at once.")
@click.option(
    "--budget", type=click.FloatRange(0, 1), help="0 is cheapest, 1 is dense; for bundles with gates or a router."
)
@click.option(
    "--max-loss",
    type=click.FloatRange(0),
    help="In the place of a budget: the most that skipping may be expected to cost, nats a token.",
)
@ROUTES
@click.option("--step", is_flag=True, help="Go token by token, as when text is generated; slow.")
@click.option(
    "--dense/--no-dense", default=True, show_default=True, help="Also measure the source model, run by torch."
)
@click.option("--dense-dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@THREADS
@BASE
@CACHE
@JSON
def command(
    bundle: Path,
    text: Path,
    tokens: int | None,
    window: int,
    budget: float | None,
    max_loss: float | None,
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
    from adaptc.runtime import open_bundle
    from adaptc.runtime.model.plan import check_budget_fits, refuse_encoder

    opened = open_bundle(bundle)
    refuse_encoder(opened)
    if sweep:
        _sweep(bundle, text, tokens, window, device, speed, threads, base, as_json)
        return
    from adaptc.evaluation.routes import has_router, routes_of
    from adaptc.evaluation.text import text_ids

    chosen = routes_of(opened, routes)
    check_budget_fits(opened, budget)
    ids = text_ids(opened, text, tokens)
    check_budget_fits(opened, max_loss, "max_loss")
    options = {"step": step, "budget": budget, "max_loss": max_loss, "threads": threads}
    models = _models(opened, ids, window, dense_dtype, threads, base, open_cache(cache_dir)) if dense else {}
    settings = {
        "window": window,
        "step": step or (bool(opened.manifest.gates) and (max_loss is not None or (budget is not None and budget < 1))),
        "dense_dtype": dense_dtype if dense else None,
    }
    if chosen:
        names: list[str | None] = [*chosen]
        if has_router(opened) and not routes:
            names.append(None)
        by_route = {name or "router": _perplexity(opened, ids, window, name, options) for name in names}
        print_result({"routes": by_route, "models": models} | settings, as_json)
        return
    own = _perplexity(opened, ids, window, None, options)
    reference = next(iter(models.values()), None)
    ratio = None if reference is None else own["perplexity"] / reference
    first = {"perplexity": own.pop("perplexity"), "dense_perplexity": reference, "ratio": ratio}
    print_result(first | own | settings, as_json)


def _perplexity(bundle: Bundle, ids: Ids, window: int, route: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a bundle, of one of its routes, or of the routes that its router picks."""
    from adaptc.evaluation.perplexity import bundle_perplexity
    from adaptc.evaluation.routes import bytes_per_token

    with shown_progress() as progress:
        progress.stage(f"perplexity of {route or 'the bundle'}")
        measured = bundle_perplexity(bundle, ids, window, route=route, progress=progress, **options)
    shares = measured.routes if route is None else {route: 1.0}
    figures = {
        "perplexity": measured.perplexity,
        "tokens": measured.tokens,
        "ffn_skipped": measured.ffn_skipped,
        "bytes_not_read": measured.bytes_not_read,
        "bytes_per_token": bytes_per_token(bundle, shares),
    }
    return figures | ({"shares": dict(measured.routes)} if measured.routes else {})


def _models(
    bundle: Bundle, ids: Ids, window: int, dtype: str, threads: int | None, base: Path, cache: Cache
) -> dict[str, float]:
    """Perplexities of the models a bundle was made of, by name."""
    from adaptc.evaluation.perplexity import dense_perplexity
    from adaptc.evaluation.reference import sources_of

    perplexities = {}
    for name, source in sources_of(bundle, base).items():
        sha256 = bundle.manifest.models[name].sha256
        with shown_progress() as progress:
            progress.stage(f"perplexity of the source model {name}")
            perplexities[name] = dense_perplexity(
                source, sha256, ids, window, cache, dtype=dtype, threads=threads, progress=progress
            ).perplexity
    return perplexities


def _sweep(
    subject: Path,
    text: Path,
    tokens: int | None,
    window: int,
    device: str,
    speed: bool,
    threads: int | None,
    base: Path,
    as_json: bool,
) -> None:
    """Measure every policy at every share and print the table."""
    from adaptc.evaluation.sweep.sweep import Options, SweepSettings, sweep
    from adaptc.training.workspace import device_of

    options = Options(SweepSettings(window, device=device_of(device)), speed, threads, base)
    with shown_progress() as progress:
        result = sweep(subject, text, tokens, options, progress)
    for name, reason in result["missing"].items():
        click.echo(f"{name}: {reason}", err=True)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        _print_sweep(result)


def _print_sweep(result: Mapping[str, Any]) -> None:
    from rich.table import Table

    from adaptc.evaluation.sweep.table import columns_and_rows

    titles, rows = columns_and_rows(result)
    caption = f"perplexity / dense ({result['dense_perplexity']:.2f}) on {result['tokens']} tokens of {result['text']}"
    table = Table(caption=f"{caption}; layers: keys and values of dropped layers are missing from the cache")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    print_table(table, width=140)
