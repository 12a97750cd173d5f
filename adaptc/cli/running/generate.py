"""The command `adaptc generate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptc.cli.options import BUNDLE
from adaptc.cli.running.requests import generation_options, load_session, print_pieces

if TYPE_CHECKING:
    from adaptc.runtime import Result, Session, SkipGates


@click.command("generate")
@BUNDLE
@click.option("-p", "--prompt", "prompts", multiple=True, help="Text to continue; several are answered as a batch.")
@click.option("-f", "--prompt-file", metavar="FILE", help="Read the prompt from a file; - is stdin.")
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An image of the prompt, which has an image token for each; brought to a size that the model takes.",
)
@click.option("--stream/--no-stream", default=True, show_default=True, help="Print text while it is generated.")
@click.option("--trace", is_flag=True, help="Print times and what was skipped to stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print answers, token ids and traces as JSON, one on each line.")
@generation_options
def command(
    bundle: Path,
    prompts: tuple[str, ...],
    prompt_file: str | None,
    images: tuple[Path, ...],
    stream: bool,
    trace: bool,
    as_json: bool,
    device: str,
    threads: int | None,
    verify: bool,
    **options: Any,
) -> None:
    """Continue a prompt.

    The answer alone goes to stdout; several prompts are answered together, in order, a blank line between.
    """
    texts = [*prompts, *([_read(prompt_file)] if prompt_file is not None else [])]
    if not texts:
        raise click.UsageError("give a --prompt or a --prompt-file")
    if images and len(texts) > 1:
        raise click.UsageError("--image: of one prompt; give one")
    defaults = {name: options[name] for name in ("budget", "max_loss", "speculate")} | {"unpaid": options.pop("unpaid")}
    with load_session(bundle, device=device, threads=threads, verify=verify, **defaults) as session:
        given = [_image(each, session) for each in images] or None
        if stream and not as_json and len(texts) == 1:
            pieces = session.generate(texts[0], stream=True, images=given, **options)
            print_pieces(pieces)
            results = [pieces.result]
        else:
            results = session.generate(texts, images=[given] if given else None, **options)
            _print_results(results, as_json)
    if trace:
        for result in results:
            click.echo(json.dumps(_trace(result)), err=True)
            for line in skip_map(result, session.gates):
                click.echo(line, err=True)


def _read(name: str) -> str:
    from adaptc.runtime import RequestError

    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return content.decode()
    except OSError as error:
        raise RequestError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{name}: not UTF-8 at byte {error.start}; save the prompt as UTF-8") from error


def _image(path: Path, session: Session) -> Any:
    """An image file as the session's model takes it: uint8 [height, width, 3].

    Raises:
        RequestError: the bundle takes no images, or none of files; or this is no image.
    """
    from adaptc.runtime import RequestError
    from adaptc.runtime.multimodal.images import fit

    if session.images is None or not session.images.spec.mean:
        why = "reads text only" if session.images is None else "does not say how an image's bytes become its numbers"
        raise RequestError(f"{path}: this bundle {why}")
    try:
        from PIL import Image
    except ImportError as error:
        raise RequestError(
            f"{path}: pillow is not installed here; pip install pillow installs what reads it"
        ) from error
    try:
        with Image.open(path) as image:
            return fit(image, session.images)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"{path}: no image that Pillow reads, or a damaged one") from error


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


def skip_map(result: Result, gates: SkipGates | None) -> Iterator[str]:
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

    derived = ("prefill_tokens_per_second", "decode_tokens_per_second", "ffn_skipped", "tokens_per_step")
    stored = asdict(replace(result.trace, skips=None))
    del stored["skips"]
    return stored | {name: getattr(result.trace, name) for name in derived}
