"""The command `adaptc eval`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptc.cli.options import BASE, BUNDLE, CACHE, JSON, ROUTES, THREADS, open_cache
from adaptc.cli.output import print_result, print_table, progress_bar, status_line

if TYPE_CHECKING:
    from adaptc.compiler.cache import Cache
    from adaptc.evaluation.perplexity import Ids
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
def command(
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
        from adaptc.evaluation.sweep import Options, Settings
        from adaptc.evaluation.sweep import sweep as run_sweep
        from adaptc.training.gates.spec import device_of

        options = Options(Settings(window, device=device_of(device)), speed, threads, base)
        with status_line() as stage:
            result = run_sweep(bundle, text, tokens, options, stage)
        _print_sweep(result, as_json)
        return
    opened = open_bundle(bundle)
    wanted = evaluate.routes_of(opened, routes)
    if budget is not None and budget < 1 and not opened.manifest.gates and not wanted:
        click.echo("this bundle has no gates: it runs dense whatever the budget", err=True)
    ids = evaluate.text_ids(opened, text, tokens)

    how = {"step": step, "budget": budget, "threads": threads}
    references = _models(opened, ids, window, dense_dtype, threads, base, open_cache(cache_dir)) if dense else {}
    about = {
        "window": window,
        "step": step or (budget is not None and budget < 1 and bool(opened.manifest.gates)),
        "dense_dtype": dense_dtype if dense else None,
    }
    if wanted:
        ways = (*wanted, *((None,) if evaluate.has_router(opened) and not routes else ()))
        ran = {way or "router": _perplexity(opened, ids, window, way, how) for way in ways}
        print_result({"routes": ran, "models": references} | about, as_json)
        return
    own = _perplexity(opened, ids, window, None, how)
    reference = next(iter(references.values()), None)
    ratio = None if reference is None else own["perplexity"] / reference
    print_result(
        {"perplexity": own.pop("perplexity"), "dense_perplexity": reference, "ratio": ratio} | own | about, as_json
    )


def _perplexity(bundle: Bundle, ids: Ids, window: int, route: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured of a bundle, of one of its routes, or of the routes that its router picks."""
    from adaptc.evaluation import perplexity as evaluate

    with progress_bar(len(ids), route or "bundle") as progress:
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
        with progress_bar(len(ids), f"source model {name}") as progress:
            found[name] = dense_perplexity(
                source, sha256, ids, window, cache, dtype=dtype, threads=threads, progress=progress
            ).perplexity
    return found


def _print_sweep(result: Mapping[str, Any], as_json: bool) -> None:
    for name, why in result["missing"].items():
        click.echo(f"{name}: {why}", err=True)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    from rich.table import Table

    from adaptc.evaluation.sweep import table

    heads, rows = table(result)
    caption = f"perplexity / dense ({result['dense_perplexity']:.2f}) on {result['tokens']} tokens of {result['text']}"
    printed = Table(caption=f"{caption}; layers: keys and values of dropped layers are missing from the cache")
    for head in heads:
        printed.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        printed.add_row(*row)
    print_table(printed, width=140)
