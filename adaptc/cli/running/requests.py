"""What `generate` and `chat` share: the options of a request, and printing its answer piece by piece."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from adaptc.cli.options import RUNS_ON, UNPAID

if TYPE_CHECKING:
    from adaptc.runtime import Session

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "-n", "--max-new-tokens", type=int, default=256, show_default=True, help="The largest number of new tokens."
    ),
    click.option(
        "--min-new-tokens",
        type=int,
        default=0,
        show_default=True,
        help="Tokens to write before any may end the answer.",
    ),
    click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the most likely token."),
    click.option("--top-k", type=int, default=0, show_default=True, help="Keep the k most likely tokens; 0 keeps all."),
    click.option(
        "--top-p",
        type=float,
        default=1.0,
        show_default=True,
        help="Keep the most likely tokens whose probabilities add up to this.",
    ),
    click.option(
        "--min-p",
        type=float,
        default=0.0,
        show_default=True,
        help="Keep tokens at least this likely relative to the first.",
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        default=1.0,
        show_default=True,
        help="Values above 1 make repetition less likely.",
    ),
    click.option("--seed", type=int, help="Seed that makes sampling repeatable."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text. May be repeated."),
    click.option(
        "--stop-token-id",
        "stop_token_ids",
        type=int,
        multiple=True,
        metavar="ID",
        help="End the answer at this token too.",
    ),
    click.option("--deadline", type=float, help="Seconds after which no further token is written."),
    click.option("--budget", type=float, help="0 is cheapest, 1 is dense; by default the bundle's own budget, or 1."),
    click.option(
        "--max-loss",
        type=float,
        help="In the place of a budget: the most that skipping may be expected to cost, nats a token.",
    ),
    UNPAID,
    click.option(
        "--speculate",
        metavar="HOW",
        help="Guess tokens and verify several in a step, with the same answer: auto, lookup, model, route or budget.",
    ),
    click.option("--route", help="Route of a stitched bundle; by default its router picks one."),
    click.option("--adapter", metavar="NAME", help="Adapter of a bundle that keeps some; by default none."),
    RUNS_ON,
    click.option("--threads", type=int, help="By default one for each physical core."),
    click.option(
        "--verify/--no-verify",
        default=True,
        show_default=True,
        help="Compare every file's sha256 with the manifest first.",
    ),
)


def load_session(bundle: Path, **options: Any) -> Session:
    """A session that writes text.

    Args:
        bundle: The bundle's folder.
        **options: Of `runtime.load`.

    Raises:
        RequestError: the bundle's model answers inputs and writes no text; and as `runtime.load`.
    """
    from adaptc.runtime import EncoderSession, ModalSession, RequestError, load
    from adaptc.runtime.model.plan import ENCODER_WRITES_NOTHING

    session = load(bundle, **options)
    if isinstance(cast("object", session), ModalSession):
        session.close()
        raise RequestError(
            f"{bundle}: its model answers inputs of several modalities and writes no text; "
            "adaptc profile, strategy and bench --jobs are for it, and runtime.load_modal in Python"
        )
    if isinstance(cast("object", session), EncoderSession):
        session.close()
        raise RequestError(f"{bundle}: {ENCODER_WRITES_NOTHING}")
    return session


def generation_options(command: F) -> F:
    """Add what generate and chat both take."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def print_pieces(pieces: Iterable[str]) -> None:
    """Print an answer while it is written."""
    for piece in pieces:
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo()
