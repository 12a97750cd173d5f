"""`adaptc bench --serve`: what its options say, and the measurement."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptc.cli.options import refuse_given
from adaptc.cli.progress import shown_progress

if TYPE_CHECKING:
    from adaptc.bench.load.load_comparison import LoadSettings
    from adaptc.bench.load.schedule import Schedule
    from adaptc.bench.load.target import LoadTarget

_SECONDS = 30.0  # of a run that nothing else ends


def bench_servers(options: dict[str, Any], turns: int, seed: int, plot: Path | None, as_json: bool) -> None:
    """Measure servers, print what was found, and exit with 1 where that is not what they can do.

    Args:
        options: Those of `load_options`.
        turns: Runs of each server.
        seed: Seed of the load.
        plot: A PNG file to draw into.
        as_json: Whether JSON is printed in place of tables.
    """
    schedule = _schedule(options, seed)
    if options["write_replay"] is not None:
        _write(schedule, options["write_replay"])
    if not options["serve"]:
        return
    from adaptc.bench.load.load_comparison import compare_under_load, load_report, with_model
    from adaptc.cli.measuring.load_table import print_load

    settings = _settings(options, turns)
    targets = [with_model(each, settings.limits.timeout) for each in _targets(options)]
    with shown_progress() as progress:
        progress.expect(len(targets) * turns)
        runs = compare_under_load(targets, schedule, settings, progress)
    report = load_report(targets, schedule, settings, runs)
    if options["output"] is not None:
        options["output"].write_text(json.dumps(report) + "\n", encoding="utf-8")
    if plot is not None:
        from adaptc.plots.load import plot_load

        plot_load(report, plot)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        print_load(report)
    for path in (options["output"], plot):
        if path is not None:
            click.echo(f"wrote {path}", err=True)
    _exit_unless_valid(report)


def _exit_unless_valid(report: dict[str, Any]) -> None:
    """Say on stderr why figures are not the servers', if they are not."""
    wrong = []
    for name, found in report["results"].items():
        if not found["completed"]:
            wrong.append(f"{name}: no request was answered")
        if not found["generator"]["kept_up"]:
            why = " and ".join(found["generator"]["why_not"])
            wrong.append(
                f"{name}: not valid, the generator did not keep up: {why}; a lower rate or a quieter machine is needed"
            )
    for line in wrong:
        click.echo(f"Error: {line}", err=True)
    if wrong:
        click.get_current_context().exit(1)


def _schedule(options: dict[str, Any], seed: int) -> Schedule:
    """Who comes.

    Raises:
        RequestError: an option is wrong.
        click.UsageError: options do not go together.
    """
    from adaptc.bench.load.arrivals import parse_arrivals
    from adaptc.bench.load.datasets import parse_dataset
    from adaptc.bench.load.replay_file import read_replay
    from adaptc.bench.load.schedule import Schedule

    rate, seconds, requests = _rate(options["rate"]), options["duration"], options["requests"]
    replay = None
    if options["replay"] is not None:
        refuse_given(("rate", "arrivals", "dataset", "requests"), "a replay has its own; leave it out")
        replay = read_replay(options["replay"], options["speed"])
    else:
        refuse_given(("speed",), "is for --replay")
        if math.isinf(rate):
            refuse_given(("arrivals",), "with --rate inf one comes when another has ended; --rate is needed")
        if seconds is None and requests is None:
            seconds = _SECONDS
    return Schedule(
        parse_dataset(options["dataset"]), parse_arrivals(options["arrivals"]), rate, seconds, requests, seed, replay
    )


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not rate > 0:
        raise click.BadParameter(f"{text!r}; requests a second above 0 are needed, or inf", param_hint="'--rate'")
    return rate


def _write(schedule: Schedule, path: Path) -> None:
    from adaptc.bench.load.replay_file import write_replay

    if schedule.closed:
        raise click.UsageError(
            "--write-replay: with --rate inf the server decides when requests come; --rate is needed"
        )
    write_replay(list(schedule.callers(0)), path)
    click.echo(f"wrote {path}", err=True)


def _settings(options: dict[str, Any], turns: int) -> LoadSettings:
    """How servers are measured."""
    from adaptc.bench.load.generator import RunLimits
    from adaptc.bench.load.load_comparison import LoadSettings
    from adaptc.bench.load.load_figures import TARGETS

    goals = {}
    for text in options["target"]:
        name, _, value = text.partition("=")
        try:
            goals[name] = float(value)
        except ValueError:
            goals[name] = math.nan
        if name not in TARGETS or not goals[name] > 0:
            raise click.BadParameter(
                f"{text!r}; NAME=SECONDS with one of {', '.join(TARGETS)} is needed", param_hint="'--target'"
            )
    limits = RunLimits(options["concurrency"], options["timeout"])
    return LoadSettings(limits, turns, options["warmup"], goals, options["max_lag"])


def _targets(options: dict[str, Any]) -> list[LoadTarget]:
    """The servers, each with what the options say of it."""
    from adaptc.bench.load.target import LoadTarget, base_url, split_name

    urls: dict[str, str] = {}
    for text in options["serve"]:
        name, equals, url = text.partition("=")
        if not equals or ":" in name:
            url = text
            name = base_url(text).partition("://")[2]
        if name in urls:
            raise click.BadParameter(f"{text!r}; each server needs a name of its own: NAME=URL", param_hint="'--serve'")
        urls[name] = base_url(url)
    said: dict[str, dict[str | None, str]] = {
        option: dict(split_name(text, list(urls)) for text in options[option])
        for option in ("model", "body", "api_key_file")
    }

    def of(option: str, name: str) -> str | None:
        return said[option].get(name, said[option].get(None))

    return [
        LoadTarget(
            name,
            url,
            options["endpoint"] == "chat",
            of("model", name),
            _body(of("body", name)),
            options["exact_lengths"],
            _key(of("api_key_file", name)),
        )
        for name, url in urls.items()
    ]


def _body(text: str | None) -> dict[str, Any]:
    try:
        body = json.loads(text or "{}")
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}; an object is needed", param_hint="'--body'") from error
    if not isinstance(body, dict):
        raise click.BadParameter(f"{text!r}; a JSON object is needed", param_hint="'--body'")
    return body


def _key(path: str | None) -> str | None:
    from adaptc.errors import RequestError
    from adaptc.runtime.text_file import read_text

    if path is None:
        return None
    lines = read_text(Path(path), "a text file with a key").split()
    if not lines or not lines[0].isascii():
        raise RequestError(f"{path}: holds no key; one on the first line is needed")
    return lines[0]
