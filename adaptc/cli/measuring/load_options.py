"""The options of `adaptc bench` for a load on servers, and a command whose help has them in a part of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource


class LoadOption(click.Option):
    """An option that only a load on servers has."""


_FILE = click.Path(dir_okay=False, path_type=Path)

_OPTIONS: dict[str, dict[str, Any]] = {
    "--serve": {
        "multiple": True,
        "metavar": "[NAME=]URL",
        "help": "Measure the server at this address instead. More than one are measured in turns.",
    },
    "--rate": {
        "default": "inf",
        "help": "Requests a second; inf lets one come when one has ended, --concurrency at a time.",
    },
    "--arrivals": {
        "default": "poisson",
        "metavar": "KIND",
        "help": "poisson, constant, gamma:SHAPE (below 1 comes in clusters) or bursts:SIZE (as many at once).",
    },
    "--duration": {
        "type": click.FloatRange(0, min_open=True),
        "metavar": "SECONDS",
        "help": "How long requests come; by default 30 s, or until --requests or the replay end.",
    },
    "--requests": {"type": click.IntRange(1), "help": "Number of requests."},
    "--concurrency": {
        "type": click.IntRange(1),
        "help": "Most requests under way at a time; by default any number, and 1 with --rate inf.",
    },
    "--dataset": {
        "default": "random",
        "metavar": "SHAPE",
        "help": "random:in=8-159,out=16-96, chat:turns=3,system=200,in=10-60,out=16-96,pause=0 or file:PATH. "
        "Lengths in tokens are N, LEAST-MOST or MEAN~DEVIATION.",
    },
    "--replay": {"type": _FILE, "help": "Send the requests of this file of JSON lines, each at its `time`."},
    "--speed": {
        "type": click.FloatRange(0, min_open=True),
        "default": 1.0,
        "help": "How many times as fast as its file a replay runs.",
    },
    "--write-replay": {"type": _FILE, "help": "Write what is sent as a file for --replay; without --serve only that."},
    "--endpoint": {"type": click.Choice(["chat", "completions"]), "default": "chat"},
    "--model": {"multiple": True, "metavar": "[NAME=]MODEL", "help": "By default the first that a server lists."},
    "--body": {
        "multiple": True,
        "metavar": "[NAME=]JSON",
        "help": """Further fields of each request, such as '{"adaptc": {"budget": 0.5}}'.""",
    },
    "--exact-lengths": {
        "is_flag": True,
        "help": "Ask for as many tokens as max_tokens says, with min_tokens (adaptc, vLLM).",
    },
    "--api-key-file": {
        "multiple": True,
        "metavar": "[NAME=]FILE",
        "help": "File with the key to send, on its first line.",
    },
    "--warmup": {
        "type": click.IntRange(0),
        "default": 1,
        "help": "Requests to each server before, which do not count; they also find out whether it answers.",
    },
    "--timeout": {"type": click.FloatRange(0, min_open=True), "default": 600.0, "help": "Seconds for a request."},
    "--target": {
        "multiple": True,
        "metavar": "NAME=SECONDS",
        "help": "What a good answer keeps, for goodput: ttft, tpot or e2e. May be repeated.",
    },
    "--max-lag": {
        "type": click.FloatRange(0, min_open=True),
        "default": 0.05,
        "help": "Most seconds by which the generator may be late, 99 times of 100.",
    },
    "--output": {"type": _FILE, "help": "Write all figures, and the times of every request, as JSON."},
}


def load_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a load; all but their names arrive as keywords."""
    for name, about in reversed(_OPTIONS.items()):
        shows = "default" in about
        names = (name, "-o") if name == "--output" else (name,)
        command = click.option(*names, cls=LoadOption, show_default=shows, **about)(command)
    return command


LOAD_NAMES = frozenset(name.removeprefix("--").replace("-", "_") for name in _OPTIONS)
"""The parameters of `load_options`."""

SHARED_NAMES = frozenset({"repeats", "seed", "plot", "as_json"})
"""Parameters of `adaptc bench` that a load has too."""


class BenchCommand(click.Command):
    """A command that measures bundles or servers: its help has two parts, and options of one go with no other."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See `click.Command.format_options`."""
        own: list[tuple[str, str]] = []
        load: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                (load if isinstance(parameter, LoadOption) else own).append(record)
        with formatter.section("Options"):
            formatter.write_dl(own)
        with formatter.section("Options with --serve, beside --repeats, --seed, --plot and --json"):
            formatter.write_dl(load)

    def invoke(self, ctx: click.Context) -> Any:
        """See `click.Command.invoke`; refuse options that would do nothing."""
        loads = bool(ctx.params["serve"] or ctx.params["write_replay"])
        if loads == (ctx.params["bundle"] is not None):
            raise click.UsageError("a BUNDLE is needed, or --serve with a server's address; not both", ctx)
        for parameter in self.params:
            name = parameter.name or ""
            given = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
            if given and name != "bundle" and name not in SHARED_NAMES and (name in LOAD_NAMES) != loads:
                raise click.UsageError(f"{parameter.opts[0]} is for {'a BUNDLE' if loads else '--serve'}", ctx)
        return super().invoke(ctx)
