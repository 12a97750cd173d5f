"""The command `adaptc chat`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptc.cli.options import BUNDLE
from adaptc.cli.running.requests import generation_options, load_session, print_pieces

if TYPE_CHECKING:
    from adaptc.runtime import Session


@click.command("chat")
@BUNDLE
@click.option("--system", metavar="TEXT", help="System message that the conversation starts with.")
@generation_options
def command(bundle: Path, system: str | None, device: str, threads: int | None, verify: bool, **options: Any) -> None:
    """Talk with a bundle.

    A line is a message. /reset forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops an answer.
    """
    beginning = [{"role": "system", "content": system}] if system else []
    defaults = {name: options[name] for name in ("budget", "max_loss", "speculate")} | {"unpaid": options.pop("unpaid")}
    with load_session(bundle, device=device, threads=threads, verify=verify, **defaults) as session:
        messages = list(beginning)
        _hint("/reset forgets the conversation, /quit leaves, Ctrl-C stops an answer.")
        while (line := _ask()) is not None and line != "/quit":
            if line == "/reset":
                messages = list(beginning)
            elif line.startswith("/"):
                _hint("There are: /reset, /quit.")
            elif line:
                messages = _answer(session, messages, line, options)


def _answer(
    session: Session, messages: list[dict[str, str]], line: str, request: dict[str, Any]
) -> list[dict[str, str]]:
    """Answer one message; the conversation after it."""
    from adaptc.runtime import RequestError

    asked = [*messages, {"role": "user", "content": line}]
    try:
        pieces = session.chat(asked, stream=True, **request)
    except RequestError as error:
        if not messages or messages[-1]["role"] != "assistant":
            raise  # it is not the conversation's length: no message would do better
        click.echo(f"Error: {error}; /reset begins anew", err=True)
        return messages
    try:
        print_pieces(pieces)
    except KeyboardInterrupt:
        pieces.close()
        click.echo()
    return [*asked, {"role": "assistant", "content": pieces.result.text}]


def _ask() -> str | None:
    """The next line that the user writes; None at the end of input."""
    if not sys.stdin.isatty():
        return line.strip() if (line := sys.stdin.readline()) else None
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  # gives input() its editing
    while True:
        try:
            return input("> ").strip()
        except EOFError:
            click.echo()
            return None
        except KeyboardInterrupt:
            _hint("\n/quit or Ctrl-D leaves.")


def _hint(text: str) -> None:
    if sys.stdin.isatty():
        click.echo(text, err=True)
