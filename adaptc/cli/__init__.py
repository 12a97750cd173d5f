"""The command line: `adaptc`.

Commands are imported when they are used, so that `adaptc --help` costs nothing. Results go to stdout, progress
and errors to stderr. Exit codes: 0 done, 1 failed, 2 used wrongly, 70 our own bug (with its traceback), 130
interrupted.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import logging
import os
import sys
import traceback
from typing import Any

import click

from adaptc import __version__
from adaptc.runtime.errors import AdaptcError

BUG, INTERRUPTED = 70, 130

COMPILING = (
    "gguf",
    "huggingface_hub",
    "matplotlib",
    "ml_dtypes",
    "networkx",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "safetensors",
    "torch",
    "transformers",
)
"""What the extra `compile` installs; a bundle runs without most of it."""

SERVING = ("anyio", "starlette", "uvicorn")
"""What the extra `serve` installs beside an engine."""

MEASURING = ("aiohttp", "matplotlib")
"""What the extra `bench` installs."""

EVALUATING = ("datasets", "langdetect", "lm_eval", "nltk")
"""What the extra `eval` installs."""

# Where each command is, and the first line of its help, so that --help needs no import; a test keeps the two the same.
COMMANDS = {
    "compile": ("compiling.compile", "Compile MODEL into a bundle."),
    "init": ("compiling.init", "Write a commented model.yaml for MODEL."),
    "train": ("compiling.train", "Train the gates of SPEC's skip_ffn, or its stitches and their router."),
    "write-data": ("compiling.write_data", "Have a model write chats, to calibrate and train on."),
    "stitch-search": (
        "compiling.stitch_search",
        "Rank the places where two models can be stitched, into each other or past layers of their own.",
    ),
    "route": ("running.route", "Say which route a stitched bundle takes for prompts."),
    "build": ("compiling.build", "Make a bundle ready for this machine."),
    "check": ("inspecting.check", "Check a spec against its models and this machine."),
    "passes": ("inspecting.passes", "List the passes, or explain one."),
    "show": ("inspecting.show", "Print a program, one operation a line."),
    "verify": ("measuring.verify", "Check a bundle: hashes, then text, weights and numbers against its source."),
    "generate": ("running.generate", "Continue a prompt."),
    "serve": ("running.serve", "Answer OpenAI's API over HTTP with bundles."),
    "export": ("running.export", "Write a folder that runs BUNDLE with Ray Serve, Triton, Docker or Kubernetes."),
    "chat": ("running.chat", "Talk with a bundle."),
    "eval": ("measuring.eval", "Measure a bundle's perplexity on a text."),
    "answers": ("measuring.answers", "Compare a bundle's answers under a budget with dense ones."),
    "quality": ("measuring.quality", "Measure what bundles can do, route by route: a table."),
    "bench": ("measuring.bench", "Measure a bundle's speed, and other engines' beside it; or servers under a load."),
    "profile": ("measuring.profile", "Measure every subset of modalities, into the bundle."),
    "strategy": ("measuring.strategy", "Print the ways to do a job that no other way beats."),
    "report": ("inspecting.report", "Write a bundle's report.html anew, with what was measured since."),
    "gates": ("compiling.gates", "Put other trained gates into a bundle."),
    "plot": ("measuring.plot", "Draw quality against speed, and which blocks a prompt skips."),
    "doctor": ("inspecting.doctor", "Say what this machine has, and what it lacks."),
    "schema": ("inspecting.schema", "Print the JSON Schema of model.yaml."),
    "cache": ("compiling.cache", "List or clear what compiling keeps."),
}


class _Commands(click.Group):
    """The commands of `COMMANDS`, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"adaptc.cli.{COMMANDS[cmd_name][0]}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; an unknown name is answered with the nearest one."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(COMMANDS)}"
            ctx.fail(f"no command {name!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; this is where every error becomes a line and an exit code."""
        if sys.stdout is None:  # as `>&-` leaves it; what a command prints would be lost
            click.echo("Error: standard output is closed; /dev/null is right where nothing shall be printed", err=True)
            ctx.exit(1)
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here a reader that has gone away still counts as one
        except AdaptcError as error:
            for line in str(error).splitlines():
                click.echo(f"Error: {line}", err=True)
            ctx.exit(1)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own
        except ModuleNotFoundError as error:
            name = (error.name or "").partition(".")[0]
            if name.replace("-", "_") not in COMPILING + SERVING + MEASURING + EVALUATING:
                raise
            of = {"serve": SERVING, "bench": MEASURING, "eval": EVALUATING}
            extra = next((extra for extra, names in of.items() if name in names), "compile")
            click.echo(f"Error: {name} is not installed; pip install 'adaptc[{extra}]'", err=True)
            ctx.exit(1)
        except MemoryError:
            click.echo("Error: out of memory; `adaptc check` says how much is needed", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            ctx.exit(INTERRUPTED)
        except OSError as error:
            if not _is_the_users(error):
                _report_bug(ctx)
            where = error.filename if error.filename is not None else "standard output"
            click.echo(f"Error: {where}: {error.strerror}", err=True)
            _drop_output()
            ctx.exit(1)
        except Exception:
            _report_bug(ctx)
        return result


_OF_USERS = frozenset(
    {
        *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO),
    }
)
"""What the system says of files that a user names, or of a disk that is full."""


def _is_the_users(error: OSError) -> bool:
    return error.errno in _OF_USERS


def _drop_output() -> None:
    """Forget what could not be written: the interpreter would try again when it ends, and fail with a traceback."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report_bug(ctx: click.Context) -> None:
    traceback.print_exc()
    click.echo("This is a bug in adaptc; please report it with the lines above.", err=True)
    ctx.exit(BUG)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="adaptc", message="%(prog)s %(version)s")
@click.option("-v", "--verbose", count=True, help="Print what is done (-v), or all details (-vv).")
@click.option("-q", "--quiet", is_flag=True, help="Print no progress.")
def main(verbose: int, quiet: bool) -> None:
    """Compile pretrained models so that they spend compute only where it pays."""
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s", force=True)
    logging.getLogger("adaptc").setLevel({0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG))
