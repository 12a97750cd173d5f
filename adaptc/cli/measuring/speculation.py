"""`adaptc bench --speculate`: its options, the measurement, and its figures, printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from adaptc.cli.options import refuse_given
from adaptc.cli.output import print_table
from adaptc.cli.progress import shown_progress

_ALL = "all"

_OPTIONS: dict[str, dict[str, Any]] = {
    "--speculate": {
        "is_flag": False,
        "flag_value": _ALL,
        "metavar": "[KINDS]",
        "help": "Measure what speculation gains instead, on these kinds of text, separated by commas, or on all: "
        "summary, edit, question, code, free, chat.",
    },
    "--prompts": {
        "type": click.Path(dir_okay=False, path_type=Path),
        "help": 'For --speculate: a JSONL file with "kind", and "prompt" or "messages".',
    },
    "--temperature": {
        "type": click.FloatRange(0),
        "default": 0.0,
        "show_default": True,
        "help": "For --speculate: tokens are drawn, with --seed; 0 takes the likeliest.",
    },
    "--budget": {
        "type": click.FloatRange(0, 1),
        "help": "For --speculate: the budget of answers; by default the bundle's own.",
    },
}

SPECULATION_NAMES = ("prompts", "temperature", "budget")
"""Parameters of `adaptc bench` that only --speculate has."""

_OTHERS = ("against", "prompt_tokens", "long_tokens", "jobs", "data", "plot", "base", "cache_dir")
"""Parameters of `adaptc bench` that would do nothing."""


def speculation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of this measurement."""
    for name, about in reversed(_OPTIONS.items()):
        command = click.option(name, **about)(command)
    return command


def bench_drafters(options: Mapping[str, Any]) -> None:
    """Measure, print what was found, and exit with 1 if an answer is another one with speculation.

    Args:
        options: Those of `adaptc bench`.
    """
    refuse_given(_OTHERS, "does nothing with --speculate; leave it out")
    if len(options["routes"]) > 1:
        raise click.UsageError("--route: --speculate measures one at a time")
    from adaptc.bench.speculation.comparison import NEW_TOKENS, TURNS, SpeculationSettings, bench_speculation
    from adaptc.runtime import open_bundle
    from adaptc.runtime.backends.onnxruntime_cpu.cores import physical_cores

    kinds = [name.strip() for name in options["speculate"].split(",") if name.strip()]
    settings = SpeculationSettings(
        threads=options["threads"] or physical_cores(),
        new_tokens=options["new_tokens"] or NEW_TOKENS,
        prompts=options["samples"],
        turns=options["repeats"] or TURNS,
        seed=options["seed"],
        temperature=options["temperature"],
        budget=options["budget"],
        route=next(iter(options["routes"]), None),
    )
    bundle = open_bundle(options["bundle"])
    with shown_progress() as progress:
        report = bench_speculation(bundle, [] if kinds == [_ALL] else kinds, options["prompts"], settings, progress)
    if options["as_json"]:
        click.echo(json.dumps(report, indent=2))
    else:
        print_speculation(report)
    print_disturbance(report["kinds"])
    _exit_unless_equal(report)


def print_speculation(report: Mapping[str, Any]) -> None:
    """The figures as tables."""
    settings, machine = report["settings"], report["machine"]
    counts = {"prompt": len(report["prompts"]), "turn": settings["turns"]}
    counted = ", ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items())
    where = f"{machine['cpu']}, {settings['threads']} threads; {counted}"
    print_kinds(report["kinds"], ("drafter", "× off"), where)
    _print_costs(report["costs"])


def print_kinds(kinds: Mapping[str, Any], titles: tuple[str, str], where: str) -> None:
    """Print a table of what `figures_by_kind` gives.

    Args:
        kinds: The figures.
        titles: Of the ways, and of the ratio.
        where: What was measured, for the caption.
    """
    from rich.table import Table

    table = Table(caption=f"{where}; medians over prompts, quartiles in brackets")
    table.add_column("kind", no_wrap=True)
    table.add_column(titles[0], no_wrap=True)
    for title, least in (
        ("tok/s", 11),
        (titles[1], 11),
        ("tokens\na step", 6),
        ("accepted/\ndrafted", 9),
        ("same\ntext", 4),
    ):
        table.add_column(title, justify="right", min_width=least)  # where it is narrow, what is in brackets goes below
    for kind, ways in kinds.items():
        for place, (way, found) in enumerate(ways.items()):
            table.add_row("" if place else kind, way, *_cells(found), end_section=place == len(ways) - 1)
    print_table(table)


def _cells(found: Mapping[str, Any]) -> list[str]:
    """What a row says of one way."""
    step, share = found["tokens_per_step"], found["acceptance"]
    same = f"{found['equal']}/{found['answers']}"
    return [
        spread_text(found["tokens_per_second"], 1),
        spread_text(found["ratio"], 2),
        "–" if step is None else f"{step:.2f}",
        "–" if share is None else f"{found['accepted']}/{found['drafted']} ({share:.0%})",
        same if found["equal"] == found["answers"] else f"[red]{same}[/]",
    ]


def _print_costs(costs: list[dict[str, Any]]) -> None:
    """What a run costs by the number of tokens that it reads."""
    from rich.table import Table

    table = Table(title="a run that reads", title_justify="left", caption="measured when the bundle was loaded")
    table.add_column("tokens", no_wrap=True)
    for each in costs:
        table.add_column(str(each["tokens"]), justify="right", no_wrap=True)
    table.add_row("ms", *(f"{each['seconds'] * 1e3:.1f}" for each in costs))
    table.add_row("plain steps", *(f"{each['plain_steps']:.2f}" for each in costs))
    print_table(table)


def spread_text(found: Mapping[str, float] | None, digits: int) -> str:
    """A median, and its quartiles if they are others."""
    if found is None:
        return "–"
    digits = 0 if found["upper_quartile"] >= 1000 else digits
    middle, lower, upper = (f"{found[key]:,.{digits}f}" for key in ("median", "lower_quartile", "upper_quartile"))
    return middle if lower == upper else f"{middle} ({lower}–{upper})"


def print_disturbance(kinds: Mapping[str, Any]) -> None:
    """Say on stderr if other programs used the machine during most answers.

    Args:
        kinds: As `figures_by_kind` gives them.
    """
    figures = [*kinds.values()][-1].values()  # of all kinds, or of the only one
    disturbed, timed = (sum(each[key] for each in figures) for key in ("disturbed", "timed"))
    if disturbed * 2 > timed:
        click.echo(
            f"other programs used the machine during {disturbed} answers, so these figures are not sure", err=True
        )


def _exit_unless_equal(report: Mapping[str, Any]) -> None:
    """Exit with 1 if an answer is another one with speculation."""
    for each in report["differences"]:
        click.echo(
            f"Error: {each['kind']}, prompt {each['prompt'] + 1}, turn {each['turn'] + 1}: {each['way']} wrote another "
            f"text after {each['same_tokens']} tokens; the same text is right, and --json has the prompt",
            err=True,
        )
    if report["differences"]:
        click.get_current_context().exit(1)
