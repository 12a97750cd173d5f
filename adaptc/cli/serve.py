"""Commands that run a bundle: generate, chat."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from adaptc.runtime import GateSpec, Result, Session

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("-n", "--max-new-tokens", type=int, default=256, show_default=True, help="Most tokens of an answer."),
    click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token."),
    click.option("--top-k", type=int, default=0, show_default=True, help="Keep the k likeliest tokens; 0: all."),
    click.option(
        "--top-p", type=float, default=1.0, show_default=True, help="Keep the likeliest, together this likely."
    ),
    click.option(
        "--min-p", type=float, default=0.0, show_default=True, help="Keep tokens this likely beside the first."
    ),
    click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1: repeat less."),
    click.option("--seed", type=int, help="Makes sampling repeatable."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text."),
    click.option("--budget", type=float, help="0 cheapest, 1 dense; by default the bundle's own, 1 if it names none."),
    click.option("--route", help="The route to take, for a stitched bundle; by default its router picks."),
    click.option("--threads", type=int, help="By default the physical cores."),
    click.option("--verify/--no-verify", default=True, show_default=True, help="Check every file's sha256 first."),
)


def generation_options(command: F) -> F:
    """Add what generate and chat both take."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command("generate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", "prompts", multiple=True, help="The text to continue; several make a batch.")
@click.option("-f", "--prompt-file", metavar="FILE", help="Read the prompt from a file; - is stdin.")
@click.option("--stream/--no-stream", default=True, show_default=True, help="Print pieces as they are written.")
@click.option("--trace", is_flag=True, help="Print where the time went and what was skipped, to stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print answers, ids and traces as JSON, one a line.")
@generation_options
def generate_command(
    bundle: Path,
    prompts: tuple[str, ...],
    prompt_file: str | None,
    stream: bool,
    trace: bool,
    as_json: bool,
    threads: int | None,
    verify: bool,
    **options: Any,
) -> None:
    """Continue a prompt.

    The answer alone goes to stdout; several prompts are answered together, in order, a blank line between.
    """
    from adaptc import runtime

    texts = [*prompts, *([_read(prompt_file)] if prompt_file is not None else [])]
    if not texts:
        raise click.UsageError("give a --prompt or a --prompt-file")
    request = _request(options)
    with runtime.load(bundle, threads=threads, verify=verify, budget=request["budget"]) as session:
        _note_budget(session, request["budget"])
        if stream and not as_json and len(texts) == 1:
            _print_pieces(session.generate(texts[0], stream=True, **request))
            results = [_last(session)]
        else:
            results = session.generate(texts, **request)
            _print_results(results, as_json)
    if trace:
        for result in results:
            click.echo(json.dumps(_trace(result)), err=True)
            for line in skip_map(result, session.gates):
                click.echo(line, err=True)


@click.command("chat")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--system", metavar="TEXT", help="What the model is told before the first message.")
@generation_options
def chat_command(bundle: Path, system: str | None, threads: int | None, verify: bool, **options: Any) -> None:
    """Talk with a bundle.

    A line is a message. /reset forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops an answer.
    """
    from adaptc import runtime

    request = _request(options)
    beginning = [{"role": "system", "content": system}] if system else []
    with runtime.load(bundle, threads=threads, verify=verify, budget=request["budget"]) as session:
        _note_budget(session, request["budget"])
        messages = list(beginning)
        _hint("/reset forgets the conversation, /quit leaves, Ctrl-C stops an answer.")
        while (line := _ask()) is not None and line != "/quit":
            if line == "/reset":
                messages = list(beginning)
            elif line.startswith("/"):
                _hint("There are: /reset, /quit.")
            elif line:
                messages = _answer(session, messages, line, request)


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
        _print_pieces(pieces)
    except KeyboardInterrupt:
        pieces.close()
        click.echo()
    return [*asked, {"role": "assistant", "content": _last(session).text}]


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


def _note_budget(session: Session, budget: float | None) -> None:
    """Say that a budget changes nothing, where it does not."""
    if budget is not None and budget < 1 and session.gates is None and not session.routes:
        click.echo("this bundle has no gates: it runs dense whatever the budget", err=True)


def _hint(text: str) -> None:
    if sys.stdin.isatty():
        click.echo(text, err=True)


def _request(options: dict[str, Any]) -> dict[str, Any]:
    from adaptc.runtime import Sampling

    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    sampling = Sampling(**{name: options.pop(name) for name in names})
    return options | {"sampling": sampling}


def _read(name: str) -> str:
    from adaptc.runtime import RequestError

    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return content.decode()
    except OSError as error:
        raise RequestError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{name}: not UTF-8 at byte {error.start}; save the prompt as UTF-8") from error


def _print_pieces(pieces: Iterable[str]) -> None:
    for piece in pieces:
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo()


def _print_results(results: list[Result], as_json: bool) -> None:
    for index, result in enumerate(results):
        if as_json:
            values = {
                "text": result.text,
                "ids": result.ids,
                "prompt_tokens": result.prompt_tokens,
                "finish_reason": result.finish_reason,
                "trace": _trace(result),
            }
            click.echo(json.dumps(values, ensure_ascii=False))
        else:
            click.echo(("\n" if index else "") + result.text)


MAP_TOKENS = 96
"""Tokens in a line of a skip map."""


def skip_map(result: Result, gates: GateSpec | None) -> Iterator[str]:
    """Lines of text: for each layer with a gate, the blocks that ran (·) and that were skipped (#), token by token."""
    skips = result.trace.skips
    if gates is None or skips is None or not len(skips.ran):
        return
    yield f"skipped (#) or ran (·), by layer; {len(skips.ran)} tokens after the warm-up"
    for start in range(0, len(skips.ran), MAP_TOKENS):
        part = skips.ran[start : start + MAP_TOKENS]
        for place in reversed(range(len(gates.layers))):
            cells = "".join("·" if ran else "#" for ran in part[:, place])
            yield f"{gates.layers[place]:4} {cells} {1 - part[:, place].mean():4.0%}"


def _trace(result: Result) -> dict[str, Any]:
    from dataclasses import asdict, replace

    derived = ("prefill_tokens_per_second", "decode_tokens_per_second", "ffn_skipped")
    stored = asdict(replace(result.trace, skips=None))
    del stored["skips"]
    return stored | {name: getattr(result.trace, name) for name in derived}


def _last(session: Session) -> Result:
    last = session.last
    assert last is not None, "a request was made"
    return last
